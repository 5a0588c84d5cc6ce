"""Hooks of edits: on layers, on denoisers, and what they share."""
