"""The models of the world."""
