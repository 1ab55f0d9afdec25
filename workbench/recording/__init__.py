"""Recording: from a run of a model to its Trace."""
