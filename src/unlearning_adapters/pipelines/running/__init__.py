"""Short runs of the user's own pipeline, which leave no trace."""
