"""Training pocket from nothing: `python -m workbench.pocket.train FOLDER`. The only part of pocket with `eval` that
needs torch.
"""
