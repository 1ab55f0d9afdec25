"""Experiments: the model again, with edits. They know models and analyses, and nothing knows them."""
