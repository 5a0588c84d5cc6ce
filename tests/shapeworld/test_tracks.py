"""Clips that are no scene (noise, blank, destroyed, cluttered) are not valid and say nothing of any factor."""

import numpy as np
import pytest

from unlearning_adapters.shapeworld.world.judge import UNKNOWN, SceneReading, judge_clip, judge_clips
from unlearning_adapters.shapeworld.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    FRAMES,
    SIZE,
    Body,
    Scene,
    render,
    sample_scene,
)
from unlearning_adapters.shapeworld.world.tracks import label_components, spread


def scenes(seed: int, count: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def smooth_field(rng: np.random.Generator, cutoff: float, amplitude: float, moving: bool) -> np.ndarray:
    """A random colour field without high frequencies, like what a destroyed model decodes to."""
    spectrum = np.fft.fftn(rng.normal(size=(FRAMES if moving else 1, SIZE, SIZE, 3)), axes=(0, 1, 2))
    frequency = np.fft.fftfreq(SIZE) * SIZE
    spectrum[:, np.hypot(frequency[:, None], frequency) > cutoff] = 0
    field = np.fft.ifftn(spectrum, axes=(0, 1, 2)).real
    field = rng.uniform(0, 255, 3) + amplitude * field / field.std()
    return np.broadcast_to(np.clip(field, 0, 255), (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)


def assert_junk(verdict: SceneReading) -> None:
    assert not verdict.valid
    assert verdict.reason
    assert verdict == SceneReading(valid=False, reason=verdict.reason)
    assert set(verdict.factors.values()) == {UNKNOWN}


@pytest.mark.parametrize("kind", ["noise", "noisy blank", "blank", "flat grey", "flat colour"])
def test_clips_without_a_picture_are_not_valid(kind: str) -> None:
    rng = np.random.default_rng(16)
    shape = (FRAMES, SIZE, SIZE, 3)
    clips = {
        "noise": [rng.integers(0, 256, shape) for _ in range(20)],
        "noisy blank": [rng.normal(level, sd, shape) for level in (12, 128, 242) for sd in (5, 15, 30, 60)],
        "blank": [np.full(shape, level) for level in (0, 255)],
        "flat grey": [np.full(shape, level) for level in (12, 100, 128, 242)],
        "flat colour": [np.broadcast_to(np.array(colour), shape) for colour in COLOURS.values()],
    }[kind]
    for verdict in judge_clips(np.clip(clip, 0, 255).astype(np.uint8) for clip in clips):
        assert_junk(verdict)


def test_shuffled_pixels_are_not_valid() -> None:
    rng = np.random.default_rng(17)
    for scene in scenes(17, 20):
        clip = render(scene).reshape(FRAMES, -1, 3)
        same = clip[:, rng.permutation(SIZE * SIZE)]
        each = np.stack([frame[rng.permutation(SIZE * SIZE)] for frame in clip])
        for shuffled in (same, each):
            assert_junk(judge_clip(shuffled.reshape(FRAMES, SIZE, SIZE, 3)))


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("amplitude", [30.0, 60.0, 120.0])
def test_smooth_colour_fields_are_not_valid(amplitude: float, moving: bool) -> None:
    rng = np.random.default_rng(18)
    for cutoff in (1.5, 2.0, 3.0, 5.0, 8.0):
        for _ in range(6):
            assert_junk(judge_clip(smooth_field(rng, cutoff, amplitude, moving)))


def test_soft_blobs_on_a_plain_background_have_no_shape() -> None:
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    for width in (6.0, 8.0, 10.0):
        for background in BACKGROUNDS.values():
            for colour in COLOURS.values():
                cover = np.exp(-((rows - 32) ** 2 + (columns - 32) ** 2) / (2 * width**2))[..., None]
                frame = np.array(background) + cover * (np.array(colour) - np.array(background))
                verdict = judge_clip(np.repeat(np.rint(frame)[None], FRAMES, axis=0).astype(np.uint8))
                assert_junk(verdict)


def test_shape_in_only_some_frames_is_not_valid() -> None:
    for scene in scenes(19, 10):
        clip = render(scene)
        clip[::3] = BACKGROUNDS[scene.background]
        assert_junk(judge_clip(clip))


def test_three_bodies_and_clutter_are_not_valid() -> None:
    bodies = tuple(Body("circle", "red", "up", 8.0, x, 32.0) for x in (12.0, 32.0, 52.0))
    assert_junk(judge_clip(render(Scene(bodies, "black"))))
    scene = scenes(20, 1)[0]
    clip = render(scene)
    clip[:, 3:61:4, 3:61:4] = 255 - clip[:, 3:61:4, 3:61:4]
    assert_junk(judge_clip(clip))


def flood(mask: np.ndarray) -> np.ndarray:
    """Label 4-connected components of each frame one pixel at a time."""
    labels = np.zeros(mask.shape, dtype=int)
    for count, start in enumerate(map(tuple, np.argwhere(mask)), 1):
        open_ = [] if labels[start] else [start]
        while open_:
            frame, y, x = open_.pop()
            inside = 0 <= y < mask.shape[1] and 0 <= x < mask.shape[2]
            if inside and mask[frame, y, x] and not labels[frame, y, x]:
                labels[frame, y, x] = count
                open_ += [(frame, y + 1, x), (frame, y - 1, x), (frame, y, x + 1), (frame, y, x - 1)]
    return labels


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_components_agree_with_a_flood_fill(share: float) -> None:
    mask = np.random.default_rng(30).random((3, 24, 19)) < share
    labels, reference = label_components(mask), flood(mask)
    assert np.array_equal(labels > 0, mask)
    pairs = {*zip(labels[mask].tolist(), reference[mask].tolist(), strict=True)}
    assert len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs})
    # Labels rise with the first pixel of their component: which body comes first rests on it.
    _, firsts = np.unique(labels[mask], return_index=True)
    assert list(firsts) == sorted(firsts)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_a_mask_grows_by_its_neighbours_in_each_frame(share: float, times: int) -> None:
    mask = np.random.default_rng(31).random((3, 24, 19)) < share
    grown = np.zeros_like(mask)
    for frame, y, x in np.argwhere(mask):
        for other_y in range(max(0, y - times), min(24, y + times + 1)):
            width = times - abs(other_y - y)
            grown[frame, other_y, max(0, x - width) : x + width + 1] = True
    assert np.array_equal(spread(mask, times), grown)
