"""Evaluation of pocket: accuracy, causal tests, routing, parity. `python -m workbench.pocket.eval FOLDER`."""
