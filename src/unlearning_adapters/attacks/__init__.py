"""Attacks on an edited pipeline: what brings a concept back, at which cost, beside two controls."""
