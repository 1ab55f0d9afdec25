"""Experiments: they run a model again with edits. They use the model and analysis packages; neither imports them."""
