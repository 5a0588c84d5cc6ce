"""Clips as HTML that a page plays in step: side by side, one over the other under a slider, or as a grid."""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from unlearning_adapters.clips import Clip, save_clip

FPS = 8.0
SCRIPT, STYLE = (Path(__file__).with_name(name) for name in ("player.js", "page.css"))


def video(clip: Clip, folder: Path, label: str, fps: float = FPS) -> str:
    """Return a clip as a video element that holds its own file, so that no other page can ask for it.

    Args:
        clip: Frames of shape (frames, height, width, 3).
        folder: For the file while it is written.
        label: What it shows, for those who do not see it.
        fps: Frames per second.
    """
    path = folder / f"clip-{os.urandom(6).hex()}.mp4"
    try:
        data = base64.b64encode(save_clip(clip, path, fps).read_bytes()).decode()
    finally:
        path.unlink(missing_ok=True)
    return (
        f"<video muted loop playsinline preload='auto' aria-label='{escape(label, quote=True)}' "
        f"src='data:video/mp4;base64,{data}'></video>"
    )


def compared(original: str, edited: str, caption: str, note: str = "") -> str:
    """Return two videos under one slider and side by side, which play in step.

    Args:
        original: Video of the base.
        edited: Video with adapters.
        caption: The prompt and the seed.
        note: What acts in the edited one.
    """
    slider = "<input type='range' class='ua-wipe' min='0' max='100' value='50' aria-label='How much is original'>"
    return (
        f"<div class='ua-player'><p class='ua-caption'>{escape(caption)}</p><div class='ua-pair'>"
        f"<figure class='ua-over'><div class='ua-stack'>{original}<div class='ua-top'>{edited}</div>"
        f"<i class='ua-line'></i></div>{slider}<figcaption>original | edited</figcaption></figure>"
        f"<figure>{original}<figcaption>original</figcaption></figure>"
        f"<figure>{edited}<figcaption>edited{': ' + escape(note) if note else ''}</figcaption></figure>"
        f"</div>{_bar()}</div>"
    )


def grid(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return videos as a table, which play in step.

    Args:
        heads: What stands over the columns.
        rows: What stands left of a row, with a video for each column.
    """
    top = "".join(f"<th scope='col'>{escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope='row'>{escape(head)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for head, cells in rows
    )
    table = f"<table class='ua-grid'><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='ua-player'><div class='ua-scroll'>{table}</div>{_bar()}</div>"


def _bar() -> str:
    return (
        "<div class='ua-bar'><button type='button' class='ua-play'>Pause</button>"
        "<input type='range' class='ua-seek' min='0' max='1000' value='0' aria-label='Position in the clips'></div>"
    )
