"""pocket, the embedded model: its problems with their true reasoning graphs, its words, its training and its figures.

Here and in everything but `train` and `eval` there is no torch.
"""
