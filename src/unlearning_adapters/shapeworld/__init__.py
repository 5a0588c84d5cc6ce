"""The embedded world, its models and their training."""
