"""`unlearn app`: a local page on which an adapter is built, looked at, measured and shared."""
