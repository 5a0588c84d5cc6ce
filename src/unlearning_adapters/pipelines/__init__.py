"""The user's pipeline: its sites, short runs of it, and what its layers read."""
