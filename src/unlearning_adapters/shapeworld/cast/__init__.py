"""CastWorld: 128 characters with names, emblems on objects, and things that a setting implies."""
