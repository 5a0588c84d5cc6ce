"""What may bring a concept back."""
