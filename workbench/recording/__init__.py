"""Records runs of a model as traces."""
