"""Versions of the installed distributions."""

from importlib.metadata import PackageNotFoundError, version


def version_of(distribution: str, missing: str = "not installed") -> str:
    """Return the version of an installed distribution; `missing` if there is none, as of a source tree."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return missing
