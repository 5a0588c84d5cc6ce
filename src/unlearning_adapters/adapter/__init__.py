"""The adapter and its file."""
