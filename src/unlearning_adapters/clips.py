"""Clips as files and pictures: mp4 files, and contact sheets that show what was forgotten and what was kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import ConfigError

Clip = NDArray[np.uint8]

MIN_SIDE = 256  # players blur anything smaller
QUALITY = 8  # of 10; flat colours stay flat

# Contact sheets, in pixels.
MARGIN = 28
GUTTER = 44  # between columns
LABEL_WIDTH = 92
FRAME_GAP = 3
STRIP_GAP = 4  # between base and edited
COMPARISON_GAP = 20
PAPER, INK, MUTED, RULE = "#ffffff", "#1b1f24", "#6b7280", "#d5d9de"
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE, NOTE_SIZE = 21, 17, 14, 13


@dataclass(frozen=True)
class Strip:
    """One row of frames of a contact sheet.

    Args:
        label: What the clip is, such as "base".
        clip: Frames of shape (frames, height, width, 3), values 0 to 255.
        note: A few words below the label, such as what a judge sees; may be empty.
    """

    label: str
    clip: Clip
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """What one prompt gives in several arms with the same seed; the strips stand below each other."""

    prompt: str
    strips: tuple[Strip, ...]


def save_clip(frames: Clip, path: str | Path, fps: float = 8) -> Path:
    """Write a clip as an mp4 file that every player and browser shows (H.264, 4:2:0).

    Small clips are enlarged by a whole factor, without smoothing, to at least `MIN_SIDE` pixels on the shorter side; an
    odd side gets its last line twice, since the format wants even sides.

    Args:
        frames: Frames of shape (frames, height, width, 3), values 0 to 255.
        path: A path that ends in ".mp4"; missing folders are made.
        fps: Frames per second.

    Returns:
        The path.

    Raises:
        ConfigError: If the frames are no clip, the path or the rate cannot be used, or the disk is full.

    Example:
        >>> save_clip(frames, "red.mp4")
    """
    # Only here: the import looks for plugins and takes a while.
    import imageio.v2 as imageio

    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"Clips are saved as .mp4 files, but got {str(path)!r}. Give a path that ends in .mp4.")
    if not 0 < fps <= 240:
        raise ConfigError(f"Expected `fps` to be from 1 to 240, but got {fps!r}.")
    video = _even(_enlarge(check_clip(frames)))
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "quality": QUALITY, "macro_block_size": 2}
    writer: Any = imageio.get_writer(path, format="FFMPEG", **options)
    with writer as file:
        for frame in video:
            file.append_data(frame)
    if not _is_whole(path.read_bytes()):
        path.unlink()
        raise ConfigError(
            f"The clip {str(path)!r} cannot be written: its encoder stopped, as it does when there is no room left on "
            "the disk. Free some, and try again."
        )
    return path


def _is_whole(data: bytes) -> bool:
    """Whether all boxes of an mp4 file are there: on a full disk its encoder ends early, and nobody says so."""
    place, kinds = 0, set[bytes]()
    while len(data) - place >= 8:
        size = int.from_bytes(data[place : place + 4], "big")
        kinds.add(data[place + 4 : place + 8])
        place += int.from_bytes(data[place + 8 : place + 16], "big") if size == 1 else max(size, 8)
    return place == len(data) and b"moov" in kinds


def to_clip(frames: Any) -> Clip:
    """Return the frames that a pipeline gave, floats from 0 to 1 or PIL images, as a uint8 clip.

    Args:
        frames: Array of shape (frames, height, width, 3), or a list of PIL images.

    Returns:
        Clip of the same shape, values 0 to 255.

    Raises:
        ConfigError: If it is no clip, or holds numbers that are not finite.
    """
    array = np.asarray([np.asarray(frame) for frame in frames] if isinstance(frames, (list, tuple)) else frames)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise ConfigError("Expected a clip, but some of its values are not finite. Try another dtype or guidance.")
        array = np.rint(np.clip(array, 0.0, 1.0) * 255).astype(np.uint8)
    return check_clip(array)


def check_clip(frames: object) -> Clip:
    """Return the frames if they are a clip, or raise `ConfigError`."""
    fits = isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
    if not isinstance(frames, np.ndarray) or not fits or 0 in frames.shape:
        shape = f"{frames.dtype} of shape {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ConfigError(f"Expected a clip, uint8 of shape (frames, height, width, 3), but got {shape}.")
    return frames


def contact_sheet(
    columns: Mapping[str, Sequence[Comparison]], title: str = "", frames: int = 5, height: int = 84
) -> Image.Image:
    """Draw clips as strips of frames: per prompt one strip below the other, in columns with a heading each.

    Args:
        columns: What stands in each column, by its heading.
        title: Line at the top; may be empty.
        frames: Number of frames of each strip, evenly from the first to the last.
        height: Height of a frame on the sheet, in pixels; its width follows from the clip.

    Returns:
        RGB picture.

    Raises:
        ConfigError: If there is nothing to draw, or a clip is none.

    Example:
        >>> strips = (Strip("base", before), Strip("unlearned", after))
        >>> contact_sheet({"Prompts": [Comparison("a red circle moves left", strips)]}).save("sheet.png")
    """
    clips = [strip.clip for column in columns.values() for item in column for strip in item.strips]
    if not clips:
        raise ConfigError("A contact sheet needs at least one clip, but got none.")
    if frames < 1 or height < 8:
        raise ConfigError(f"Expected at least 1 frame of 8 pixels on a contact sheet, but got {frames} of {height}.")
    widest = max(check_clip(clip).shape[2] / clip.shape[1] for clip in clips)
    tile = (max(1, round(widest * height)), height)
    pictures = [_draw_column(heading, column, frames, tile) for heading, column in columns.items()]
    width = 2 * MARGIN + sum(column.width for column in pictures) + GUTTER * (len(pictures) - 1)
    top = MARGIN + (TITLE_SIZE + 20 if title else 0)
    sheet = Image.new("RGB", (width, top + max(column.height for column in pictures) + MARGIN), PAPER)
    if title:
        line = _shorten(title, TITLE_SIZE, width - 2 * MARGIN)
        ImageDraw.Draw(sheet).text((MARGIN, MARGIN), line, INK, ImageFont.load_default(TITLE_SIZE))
    left = MARGIN
    for column in pictures:
        sheet.paste(column, (left, top))
        left += column.width + GUTTER
    return sheet


def _draw_column(heading: str, column: Sequence[Comparison], frames: int, tile: tuple[int, int]) -> Image.Image:
    width = LABEL_WIDTH + frames * (tile[0] + FRAME_GAP) - FRAME_GAP
    captions = [_wrap(item.prompt, TEXT_SIZE, width) for item in column]
    line = TEXT_SIZE + 5
    heights = [
        len(lines) * line + 4 + len(item.strips) * (tile[1] + STRIP_GAP) - STRIP_GAP
        for item, lines in zip(column, captions, strict=True)
    ]
    picture = Image.new("RGB", (width, HEADING_SIZE + 24 + sum(heights) + COMPARISON_GAP * (len(column) - 1)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), _shorten(heading, HEADING_SIZE, width), INK, ImageFont.load_default(HEADING_SIZE))
    draw.line((0, HEADING_SIZE + 10, width, HEADING_SIZE + 10), RULE, 1)
    top = HEADING_SIZE + 24
    for item, lines, height in zip(column, captions, heights, strict=True):
        for index, text in enumerate(lines):
            draw.text((0, top + index * line), text, INK, ImageFont.load_default(TEXT_SIZE))
        below = top + len(lines) * line + 4
        for strip in item.strips:
            _draw_strip(picture, strip, frames, tile, below)
            below += tile[1] + STRIP_GAP
        top += height + COMPARISON_GAP
    return picture


def _draw_strip(picture: Image.Image, strip: Strip, frames: int, tile: tuple[int, int], top: int) -> None:
    draw = ImageDraw.Draw(picture)
    room = LABEL_WIDTH - 10
    middle = top + tile[1] // 2 - (TEXT_SIZE + (NOTE_SIZE + 4 if strip.note else 0)) // 2 - 2
    draw.text((0, middle), _shorten(strip.label, TEXT_SIZE, room), INK, ImageFont.load_default(TEXT_SIZE))
    if strip.note:
        note = _shorten(strip.note, NOTE_SIZE, room)
        draw.text((0, middle + TEXT_SIZE + 4), note, MUTED, ImageFont.load_default(NOTE_SIZE))
    for place, index in enumerate(np.linspace(0, len(strip.clip) - 1, frames).round().astype(int)):
        frame = Image.fromarray(strip.clip[index])
        scale = min(tile[0] / frame.width, tile[1] / frame.height)
        size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
        left = LABEL_WIDTH + place * (tile[0] + FRAME_GAP)
        picture.paste(frame.resize(size, Image.Resampling.LANCZOS), (left, top))
        draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline=RULE)  # a white frame has an edge


def _text_width(text: str, size: int) -> float:
    return float(ImageFont.load_default(size).getlength(text))


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Break a text into at most two lines of a width."""
    words = text.split()
    first: list[str] = []
    while words and (not first or _text_width(" ".join([*first, words[0]]), size) <= width):
        first.append(words.pop(0))
    return [_shorten(" ".join(part), size, width) for part in (first, words) if part]


def _shorten(text: str, size: int, width: int) -> str:
    """Cut a text to one line of a width, with dots where something is missing."""
    text = " ".join(text.split())
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(f"{text}...", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _enlarge(frames: Clip) -> Clip:
    factor = -(-MIN_SIDE // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _even(frames: Clip) -> Clip:
    return np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
