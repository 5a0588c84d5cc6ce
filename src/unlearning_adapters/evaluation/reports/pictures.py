"""Clips of a report as small pictures inside of the page: a strip of frames, and the same moving."""

import base64
import io
from typing import Any

from PIL import Image

from unlearning_adapters.clips import Clip
from unlearning_adapters.pipelines.spacing import evenly_spaced

HEIGHT = 96  # of a frame
FRAMES = 6  # of a strip
DURATION = 160  # milliseconds of a frame of the moving picture
QUALITY = 82
GAP = 2


def strip(clip: Clip, height: int = HEIGHT, frames: int = FRAMES) -> str:
    """Return evenly spaced frames side by side as a data URI.

    Args:
        clip: Clip of shape (frames, height, width, 3).
        height: Height of a frame, in pixels.
        frames: Number of frames.
    """
    small = [shrink(clip[index], height) for index in evenly_spaced(len(clip), frames)]
    width = small[0].width
    sheet = Image.new("RGB", (width * len(small) + GAP * (len(small) - 1), height), "#8888")
    for place, frame in enumerate(small):
        sheet.paste(frame, (place * (width + GAP), 0))
    return _data_uri(sheet, "WEBP", quality=QUALITY)


def moving(clip: Clip, height: int = HEIGHT, frames: int = 16) -> str:
    """Return a clip as an animated picture, as a data URI.

    Args:
        clip: Clip of shape (frames, height, width, 3).
        height: Height of a frame, in pixels.
        frames: Largest number of frames.
    """
    first, *others = [shrink(clip[index], height) for index in evenly_spaced(len(clip), frames)]
    options: dict[str, Any] = {"save_all": True, "append_images": others, "duration": DURATION, "loop": 0}
    return _data_uri(first, "WEBP", quality=QUALITY, **options)


def shrink(frame: Any, height: int) -> Image.Image:
    """Return a frame with another height; small ones are enlarged without smoothing."""
    picture = Image.fromarray(frame)
    width = max(1, round(picture.width * height / picture.height))
    sampling = Image.Resampling.LANCZOS if picture.height > height else Image.Resampling.NEAREST
    return picture.resize((width, height), sampling)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
