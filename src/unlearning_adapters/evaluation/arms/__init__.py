"""The states of a pipeline that are measured: how they run, and how their clips are stored."""
