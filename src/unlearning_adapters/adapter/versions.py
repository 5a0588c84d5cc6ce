"""Versions of the installed distributions."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@lru_cache  # reading one takes a millisecond, and an adapter names several
def version_of(distribution: str, missing: str = "not installed") -> str:
    """Return the version of an installed distribution; `missing` if there is none, as of a source tree."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return missing
