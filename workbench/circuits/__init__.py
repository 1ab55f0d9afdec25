"""What can be read from the weights alone, in the vocabulary: heads, routers and experts, without any run."""
