"""pocket, the embedded model: its problems with their true dependency graphs, vocabulary, training and evaluation.

Only `train` and `eval` import torch.
"""
