"""Attacks: what may bring a concept back."""
