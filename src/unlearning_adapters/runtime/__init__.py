"""Adapters on a live pipeline: attach, fuse, stack."""
