"""Training of pocket from scratch: `python -m workbench.pocket.train FOLDER`.

Only this package and `eval` need torch.
"""
