"""The command `unlearn`."""
