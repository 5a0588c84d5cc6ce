"""Fuzzing of the adapter file: changed files go through the real loader, next to a live pipeline, under a watch."""
