"""Checks of a live pipeline: whether each edit acts, and in what surroundings."""
