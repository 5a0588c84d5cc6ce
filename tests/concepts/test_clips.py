"""Clips that a user gives: how they are read from folders and lists, and what is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from unlearning_adapters.clips import save_clip
from unlearning_adapters.concepts.clips import fitted, read_clips
from unlearning_adapters.errors import ConceptError, ConfigError

SIZE = (5, 32, 32)


def clip(seed: int, frames: int = 5, side: int = 32) -> np.ndarray:
    """Blocks of 8 pixels, which films keep well."""
    small = np.random.default_rng(seed).integers(0, 256, (frames, side // 8, side // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def folder_of(path, clips, write) -> str:
    for name, items in clips.items():
        (path / name).mkdir(parents=True)
        for index, item in enumerate(items):
            write(item, path / name / f"{index:02d}")
    return str(path)


def test_a_folder_of_arrays_is_read_in_the_order_of_names(tmp_path):
    given = {"unsafe": [clip(0), clip(1)], "safe": [clip(2), clip(3)], "neutral": [clip(4)]}
    folder = folder_of(tmp_path / "clips", given, lambda item, path: np.save(path.with_suffix(".npy"), item))
    (tmp_path / "clips" / "safe" / ".notes").write_text("no clip")
    found = read_clips(folder, pairs=2)
    assert found.keys() == given.keys()
    for name, items in given.items():
        assert len(found[name]) == len(items)
        assert all(np.array_equal(one, other) for one, other in zip(found[name], items, strict=True))


def test_films_of_this_package_come_back_at_their_own_size(tmp_path):
    """`save_clip` enlarges small clips eight times."""
    given = {"unsafe": [clip(0)], "safe": [clip(1)]}
    folder = folder_of(tmp_path / "clips", given, lambda item, path: save_clip(item, path.with_suffix(".mp4")))
    found = read_clips(folder, pairs=1)
    assert found["safe"][0].shape == (5, 256, 256, 3)
    for name, items in given.items():
        back = fitted(found[name][0], SIZE)
        assert back.shape == items[0].shape
        assert np.abs(back.astype(float) - items[0]).mean() < 12  # of 255: H.264 halves the colours' resolution


def test_pictures_stand_still(tmp_path):
    given = {"unsafe": [clip(0)[0]], "safe": [clip(1)[0]]}
    write = lambda item, path: Image.fromarray(item).save(path.with_suffix(".png"))  # noqa: E731
    found = read_clips(folder_of(tmp_path / "clips", given, write), pairs=1)
    still = fitted(found["unsafe"][0], SIZE)
    assert still.shape == (5, 32, 32, 3) and all(np.array_equal(frame, given["unsafe"][0]) for frame in still)


def test_in_memory_all_kinds_are_the_same_clip():
    frames = clip(0)
    kinds = [
        frames,
        frames / 255,
        torch.from_numpy(frames / 255).permute(0, 3, 1, 2),
        [Image.fromarray(frame) for frame in frames],
    ]
    found = read_clips({"unsafe": kinds, "safe": kinds}, pairs=4)
    assert all(np.array_equal(item, frames) for name in found for item in found[name])
    assert read_clips({"unsafe": [Image.fromarray(frames[0])], "safe": [frames]}, 1)["unsafe"][0].shape == (
        1,
        32,
        32,
        3,
    )


@pytest.mark.parametrize(
    ("clips", "text"),
    [
        ({"unsafe": [clip(0)] * 5, "safe": [clip(1)] * 4}, "but got 5 unsafe and 4 safe clips"),
        ({"unsafe": [clip(0)] * 7, "safe": [clip(1)] * 7}, "the same number for each of the 5 pairs, but got 7 unsafe"),
        ({"unsafe": [], "safe": []}, "but got 0 unsafe and 0 safe clips"),
    ],
)
def test_numbers_that_do_not_fit_the_pairs_are_refused(clips, text):
    with pytest.raises(ConceptError, match=text):
        read_clips(clips, pairs=5)


def test_other_names_and_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a mapping of 'unsafe', 'safe' and 'neutral', but got 'red', 'blue'"):
        read_clips({"red": [], "blue": []}, 1)
    with pytest.raises(ConfigError, match="but got int"):
        read_clips(3, 1)
    with pytest.raises(ConfigError, match="The safe clip 2 is none: Expected a clip"):
        read_clips({"unsafe": [clip(0)] * 2, "safe": [clip(1), np.zeros((4, 4))]}, 1)
    with pytest.raises(ConceptError, match="there is none at"):
        read_clips(tmp_path / "none", 1)
    (tmp_path / "unsafe").mkdir()
    with pytest.raises(ConceptError, match="but 'safe' is missing"):
        read_clips(tmp_path, 1)
    (tmp_path / "safe").mkdir()
    for name, text in (("a.txt", "to be files of the kinds .mp4"), ("a.mp4", "cannot be opened")):
        (tmp_path / "safe" / name).write_text("no film")
        with pytest.raises(ConceptError, match=text):
            read_clips({"unsafe": [clip(0)], "safe": [tmp_path / "safe" / name]}, 1)


@pytest.mark.parametrize(
    "other", [clip(0, frames=4), clip(0, side=24), clip(0, side=48), np.zeros((5, 64, 32, 3), np.uint8)]
)
def test_another_size_is_refused_and_never_scaled(other):
    frames, height, width = other.shape[:3]
    text = f"A given clip has {frames} frames of {height} x {width} pixels .height x width., but those of the pipeline"
    with pytest.raises(ConceptError, match=text):
        fitted(other, SIZE)
