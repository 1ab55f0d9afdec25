"""harmony: what is said to a model becomes token ids, and token ids become messages again."""
