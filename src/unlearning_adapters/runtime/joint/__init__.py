"""The joint edit of several adapters: pure mathematics."""
