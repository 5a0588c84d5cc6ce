"""Stands in for pandas, which DiffSynth imports for its data sets; nothing that the tests run calls it."""
