"""Stands in for torchaudio; nothing that the tests run calls it."""
