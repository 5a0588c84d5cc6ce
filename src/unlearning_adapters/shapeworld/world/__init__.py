"""What exists in the world: scenes, captions, phrases, and the judge."""
