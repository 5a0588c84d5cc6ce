"""Prompts with roles."""
