"""What a result was made from, running it again, and finding an adapter in a checkpoint."""
