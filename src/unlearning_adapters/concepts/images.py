"""The pictures of pairs: paths or PIL images, how they compare, and where a concept file finds them.

PIL is imported only where a picture is opened. A concept file may come from strangers, so the files that it names are
opened as pictures at once, and nothing is fetched from the network.
"""

import hashlib
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.missing import why_missing, why_unreadable
from unlearning_adapters.errors import ConceptError

from .wording import check_list, show

SIDES = ("unsafe_image", "safe_image")


def is_picture(value: object) -> bool:
    """Tell whether a value is a path or a PIL image."""
    return isinstance(value, (str, Path)) or hasattr(value, "convert")


def check_pictures(name: str, values: object) -> tuple[Any, ...]:
    """Return a list of pictures as a tuple; an entry that is none is an error."""
    images = check_list(name, values)
    for index, image in enumerate(images, start=1):
        if not is_picture(image):
            raise ConceptError(
                f"Expected entry {index} of `{name}` to be a path or a PIL image, but got {show(image)}."
            )
    return images


def is_path(value: object) -> bool:
    """Tell whether a picture is given by a path (or an address, in code)."""
    return isinstance(value, (str, Path))


def same_picture(one: Any, other: Any) -> bool:
    """Tell whether two pictures are the same: the same path, or equal pixels."""
    if is_path(one) and is_path(other):
        return str(one) == str(other)
    return bool(one is other or one == other)


def picture_digest(picture: Any) -> str:
    """Return the SHA-256 of a file's bytes, or of the size and pixels of a PIL image.

    Raises:
        ConceptError: If the file cannot be read.
    """
    if not is_path(picture):
        pixels = picture.convert("RGB")
        return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    if str(picture).startswith(("http://", "https://")):
        return hashlib.sha256(str(picture).encode()).hexdigest()
    path = Path(picture)
    if reason := why_unreadable(path):
        raise ConceptError(f"The picture {path} of a pair cannot be read: {reason}. Check the path.")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConceptError(f"The picture {path} of a pair cannot be read ({error.strerror}).") from error


def locate_pictures(values: Any, folder: Path) -> None:
    """Make the picture paths of a concept file absolute, in place.

    Args:
        values: What the file holds; wrong types are left for `Concept.from_dict` to refuse.
        folder: Folder of the file, which relative paths start from.

    Raises:
        ConceptError: If a file is missing or is not a picture; the text names the entry and the path.
    """
    pairs, pictures = (values.get(key) for key in ("pairs", "neutral_images")) if isinstance(values, dict) else ((), ())
    for index, pair in enumerate(pairs if isinstance(pairs, list) else (), start=1):
        for side in SIDES if isinstance(pair, dict) else ():
            if isinstance(pair.get(side), str):
                pair[side] = _located(pair[side], folder, f"The `{side}` of entry {index} of `pairs`")
    pictures = pictures if isinstance(pictures, list) else []
    for index, picture in enumerate(pictures):
        if isinstance(picture, str):
            pictures[index] = _located(picture, folder, f"Entry {index + 1} of `neutral_images`")


def relative_pictures(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of a concept relative to the folder of its file, in place, so that both can move together.

    Args:
        values: What `Concept.to_dict` returns, with absolute paths.
        folder: Folder of the file; a picture outside of it keeps its absolute path.
    """
    root = folder.resolve()

    def relative(path: str) -> str:
        return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path

    for pair in values["pairs"]:
        pair |= {side: relative(pair[side]) for side in SIDES if side in pair}
    if "neutral_images" in values:
        values["neutral_images"] = [relative(path) for path in values["neutral_images"]]


def _located(text: str, folder: Path, where: str) -> str:
    from PIL import Image

    try:
        path = (folder / text).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, a loop of links
        raise ConceptError(f"{where} is not a path: {text[:60]!r} ({error}).") from None
    if not text.strip() or not exists:
        reason = why_missing(folder / text, f"there is no file {path}") if text.strip() else f"there is no file {path}"
        raise ConceptError(f"{where} is missing: {reason}. Paths are relative to the concept's file.")
    if reason := why_unreadable(path):
        raise ConceptError(f"{where} cannot be opened as a picture: {path}: {reason}.")
    try:
        with Image.open(path):  # reads the header only
            return str(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConceptError(f"{where} cannot be opened as a picture: {path} ({type(error).__name__}).") from error
