"""Detectors, which look at clips, one file each."""
