"""The expensive arithmetic, with plain torch as its reference. This package does not import the rest of the model."""
