"""Explain why a file is missing: a broken link, a name in another case, or a folder of that name."""

import os
from pathlib import Path

# The first bytes of the text that Git LFS leaves in place of a file that was not fetched.
POINTER = b"version https://git-lfs"
FETCH = "Run `git lfs pull` where the repository was cloned, or download the file itself."


def is_lfs_pointer(start: bytes) -> bool:
    """Tell by its first bytes whether a file is a pointer of Git LFS, which stands for another file."""
    return start[: len(POINTER)] == POINTER[: len(start)] if len(start) >= 8 else False


def why_missing(path: Path, otherwise: str = "there is no such file or folder") -> str:
    """Return in one clause why nothing is found at a path.

    Args:
        path: A path at which there is neither a file nor a folder, or not the one that was expected.
        otherwise: What to say if nothing is known.
    """
    try:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {str(path.readlink())!r}, where nothing is"
        if path.is_dir():
            return f"{path.name!r} is a folder there, not a file"
        if path.exists() and not path.is_file():
            return f"{path.name!r} is a device or a pipe there, not a file"
        if not path.exists() and (other := in_other_case(path)):
            return f"{otherwise}, but there is {other!r}, and names are case-sensitive here"
    except (OSError, ValueError) as error:
        return " ".join((getattr(error, "strerror", None) or str(error)).split())
    return otherwise


def why_unreadable(path: Path, otherwise: str = "there is no such file") -> str:
    """Return in one clause why a file has no content to read, or nothing if it has.

    Args:
        path: Path of a file.
        otherwise: What to say if the file is missing and no other reason is known.
    """
    try:
        if not path.is_file():
            return why_missing(path, otherwise)
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except (OSError, ValueError) as error:  # no permission, or not a possible path
        return " ".join((getattr(error, "strerror", None) or str(error)).split())
    return (
        f"it is a pointer of Git LFS, which stands for the file. {FETCH.rstrip('.')}" if is_lfs_pointer(start) else ""
    )


def in_other_case(path: Path) -> str | None:
    """Return the name, beside the first part of a path that is not there, that differs in the case of letters alone."""
    part = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    if not part.parent.is_dir():
        return None
    names = (item.name for item in part.parent.iterdir())
    return next((name for name in sorted(names) if name.casefold() == part.name.casefold() != ""), None)


def is_path(value: object) -> bool:
    """Tell whether a value is a path that the system can look up.

    A name may be too long, hold a null character, or letters that no file name can hold.
    """
    try:
        if not isinstance(value, (str, Path)) or b"\0" in os.fsencode(value):
            return False
        return isinstance(Path(value).exists(), bool)
    except (OSError, ValueError):
        return False
