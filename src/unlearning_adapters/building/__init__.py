"""From pairs to an adapter, without training."""
