"""The gpt-oss forward pass, its taps, its weights, and the Model that holds them."""
