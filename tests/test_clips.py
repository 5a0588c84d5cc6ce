"""Clips as files that play, and contact sheets on which every strip is where it belongs."""

import resource
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unlearning_adapters.clips import (
    LABEL_WIDTH,
    MARGIN,
    MIN_SIDE,
    Comparison,
    Strip,
    contact_sheet,
    save_clip,
    to_clip,
)
from unlearning_adapters.errors import ConfigError

RED, BLUE = (220, 30, 30), (30, 60, 220)


def plain_clip(
    colour: tuple[int, int, int] = RED, frames: int = 9, height: int = 64, width: int = 64
) -> NDArray[np.uint8]:
    return np.full((frames, height, width, 3), colour, dtype=np.uint8)


def ramp_clip(frames: int = 9, size: int = 64) -> NDArray[np.uint8]:
    """A clip whose frames are evenly spaced greys, so that a frame tells its place."""
    return np.broadcast_to(np.linspace(20, 230, frames)[:, None, None, None], (frames, size, size, 3)).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of imageio's own reader
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (480, 832), (301, 257)])
def test_a_saved_clip_plays_with_its_frames_and_colours(tmp_path: Path, height: int, width: int) -> None:
    clip = plain_clip(height=height, width=width)
    clip[5:] = BLUE
    path = save_clip(clip, tmp_path / "new" / "clip.mp4", fps=8)
    with imageio.get_reader(path) as reader:
        frames = np.stack([np.asarray(frame) for frame in reader])
        assert reader.get_meta_data()["fps"] == 8
        assert reader.get_meta_data()["pix_fmt"].startswith("yuv420p")
    assert len(frames) == 9
    shown_height, shown_width = frames.shape[1:3]
    assert min(shown_height, shown_width) >= MIN_SIDE and shown_height % 2 == 0 and shown_width % 2 == 0
    factor = -(-MIN_SIDE // min(height, width))
    assert (shown_height - height * factor, shown_width - width * factor) == (height * factor % 2, width * factor % 2)
    assert np.abs(frames[:5].astype(int) - RED).mean() < 12
    assert np.abs(frames[5:].astype(int) - BLUE).mean() < 12


def test_clips_differ_if_their_frames_do(tmp_path: Path) -> None:
    one, other = save_clip(plain_clip(RED), tmp_path / "a.mp4"), save_clip(plain_clip(BLUE), tmp_path / "b.mp4")
    assert one.read_bytes() != other.read_bytes()
    again = save_clip(plain_clip(RED), tmp_path / "c.mp4")
    assert one.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (np.zeros((9, 64, 64, 3), dtype=np.float32), r"got float32 of shape \(9, 64, 64, 3\)"),
        (np.zeros((9, 64, 64), dtype=np.uint8), r"got uint8 of shape \(9, 64, 64\)"),
        (np.zeros((0, 64, 64, 3), dtype=np.uint8), r"got uint8 of shape \(0, 64, 64, 3\)"),
        ([1, 2], "got list"),
    ],
)
def test_what_is_no_clip_is_refused_and_nothing_is_written(tmp_path: Path, frames: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        save_clip(frames, tmp_path / "new" / "clip.mp4")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"saved as \.mp4 files, but got '.*clip\.gif'\. Give a path"):
        save_clip(plain_clip(), tmp_path / "clip.gif")
    with pytest.raises(ConfigError, match="Expected `fps` to be from 1 to 240, but got 0"):
        save_clip(plain_clip(), tmp_path / "clip.mp4", fps=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [100, 2000])
def test_a_clip_on_a_full_disk_is_refused_and_nothing_is_left(tmp_path: Path, room: int) -> None:
    """The limit is the kernel's; the encoder, a process of its own, has it as well and ends without a word."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(ConfigError, match="no room left on the disk"):
            save_clip(noise, tmp_path / "clip.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert save_clip(noise, tmp_path / "clip.mp4").stat().st_size > 2000


def test_floats_and_pictures_become_the_same_clip() -> None:
    clip = ramp_clip()
    floats = clip.astype(np.float32) / 255
    assert np.array_equal(to_clip(floats), clip)
    assert np.array_equal(to_clip([Image.fromarray(frame) for frame in clip]), clip)
    assert np.array_equal(to_clip(list(floats)), clip)
    assert np.array_equal(to_clip(clip), clip)
    assert np.array_equal(to_clip(np.full((1, 2, 2, 3), 1.5)), np.full((1, 2, 2, 3), 255))


def test_floats_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="some of its values are not finite"):
        to_clip(np.full((1, 2, 2, 3), np.nan))


def pair(prompt: str, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Comparison:
    return Comparison(prompt, (Strip("base", before, "red"), Strip("unlearned", after, "blue")))


def rows_of(sheet: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.intp]:
    return np.flatnonzero((np.asarray(sheet) == colour).all(2).any(1))


def columns_of(sheet: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.intp]:
    return np.flatnonzero((np.asarray(sheet) == colour).all(2).any(0))


def test_the_base_stands_above_what_was_unlearned() -> None:
    sheet = contact_sheet({"Prompts": [pair("a red circle", plain_clip(RED), plain_clip(BLUE))]}, title="no red")
    base, unlearned = rows_of(sheet, RED), rows_of(sheet, BLUE)
    assert len(base) and len(unlearned) and base.max() < unlearned.min()
    assert np.array_equal(columns_of(sheet, RED), columns_of(sheet, BLUE))  # frame below frame
    assert columns_of(sheet, RED).min() >= MARGIN + LABEL_WIDTH


def test_columns_stand_beside_each_other() -> None:
    left = [pair("a red circle", plain_clip(RED), plain_clip(RED))]
    right = [pair("a blue circle", plain_clip(BLUE), plain_clip(BLUE))]
    sheet = contact_sheet({"Concept": left, "Neighbours": right})
    assert columns_of(sheet, RED).max() < columns_of(sheet, BLUE).min()
    assert np.array_equal(rows_of(sheet, RED), rows_of(sheet, BLUE))
    swapped = contact_sheet({"Neighbours": right, "Concept": left})
    assert columns_of(swapped, BLUE).max() < columns_of(swapped, RED).min()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_a_strip_shows_even_frames_from_the_first_to_the_last(count: int) -> None:
    clip = ramp_clip()
    sheet = np.asarray(contact_sheet({"": [Comparison("x", (Strip("base", clip),))]}, frames=count, height=64))
    line = sheet[sheet.shape[0] - MARGIN - 32]  # through the middle of the frames
    greys = [int(value) for value in line[MARGIN + LABEL_WIDTH + 32 :: 67, 0][:count]]
    places = np.linspace(0, 8, count).round().astype(int)
    assert greys == [int(clip[place, 0, 0, 0]) for place in places]


def test_labels_notes_captions_and_headings_are_drawn() -> None:
    clip = plain_clip()
    bare = contact_sheet({"": [Comparison("", (Strip("", clip),))]})
    for part in (
        contact_sheet({"": [Comparison("", (Strip("base", clip),))]}),
        contact_sheet({"": [Comparison("", (Strip("", clip, "red"),))]}),
        contact_sheet({"Prompts": [Comparison("", (Strip("", clip),))]}),
    ):
        assert part.size == bare.size
        assert not np.array_equal(np.asarray(part), np.asarray(bare))
    assert contact_sheet({"": [Comparison("a red circle", (Strip("", clip),))]}).height > bare.height
    assert contact_sheet({"": [Comparison("", (Strip("", clip),))]}, title="no red").height > bare.height


@given(text=st.text(max_size=300), height=st.integers(8, 90), width=st.integers(4, 120))
@settings(max_examples=25, deadline=None)
def test_any_text_and_any_size_stay_on_the_sheet(text: str, height: int, width: int) -> None:
    clip = plain_clip(height=height, width=width, frames=2)
    sheet = contact_sheet({text: [pair(text, clip, clip)]}, title=text, frames=3)
    picture = np.asarray(sheet)
    edge = np.concatenate([picture[:8].reshape(-1, 3), picture[:, :8].reshape(-1, 3), picture[:, -8:].reshape(-1, 3)])
    assert (edge == 255).all()
    assert len(rows_of(sheet, RED))


def test_a_wide_clip_keeps_its_shape() -> None:
    sheet = contact_sheet({"": [Comparison("x", (Strip("", plain_clip(height=48, width=96)),))]}, frames=1, height=50)
    assert abs(len(columns_of(sheet, RED)) - 98) <= 2 and abs(len(rows_of(sheet, RED)) - 48) <= 2


def test_an_empty_sheet_and_a_wrong_clip_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs at least one clip"):
        contact_sheet({"Prompts": []})
    with pytest.raises(ConfigError, match="Expected a clip, uint8"):
        contact_sheet({"Prompts": [Comparison("x", (Strip("base", np.zeros((2, 2))),))]})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1 frame of 8 pixels on a contact sheet, but got 0 of 84"):
        contact_sheet({"Prompts": [Comparison("x", (Strip("base", plain_clip()),))]}, frames=0)
