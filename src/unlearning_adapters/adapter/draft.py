"""Write a file or folder completely or not at all: write a draft beside its place, then rename the draft."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give the path of a draft, which takes the place of `path` if the block ends without an error.

    The draft lies in the same folder, which is made if it is missing; after an error nothing of it is left.

    Args:
        path: A file, or a folder that is missing or empty.

    Example:
        >>> with draft_of(Path("out/model")) as folder:
        ...     pipe.save_pretrained(folder)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)


def write_whole(path: Path, blob: bytes) -> Path:
    """Write a file whole or not at all, with the folders that it lies in, and return its path."""
    with draft_of(path) as draft, draft.open("xb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    return path
