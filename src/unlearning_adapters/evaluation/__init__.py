"""Evaluation: what a pipeline shows before and after an edit, on the same prompts and seeds, with controls."""
