"""Fused edits: written into weights, and taken out again bit for bit."""
