"""Push, pull and the model card."""
