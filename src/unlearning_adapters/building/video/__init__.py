"""The edit at video tokens, `scope="concept"`."""
