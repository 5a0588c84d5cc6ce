"""What is to be forgotten: pairs, neutral prompts, packs; no torch."""
