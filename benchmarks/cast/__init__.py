"""Measure erasure on CastWorld: `python -m benchmarks.cast` (see `__main__`)."""
