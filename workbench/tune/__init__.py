"""What is trained on a model's own activations, and belongs to that model alone."""
