"""What an edit erased and what it kept, measured."""
