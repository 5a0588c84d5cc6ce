"""Optional packages of detectors: how they are imported, and the hash of the weights that they bring."""

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import EvaluationError


def load_package(module: str, package: str, detector: str) -> Any:
    """Return an optional module.

    Args:
        module: Name to import.
        package: Name to install.
        detector: Name of the detector that needs it, for the error.

    Raises:
        EvaluationError: If it, or a package that it needs, is not installed; the text says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EvaluationError(
            f"The detector {detector!r} needs the package {package}, but it cannot be imported ({error}). "
            f"Run: pip install {package}"
        ) from error


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):  # Python 3.10 has no file_digest
        total.update(block)
    return total.hexdigest()
