"""The judge is right about renders, also degraded ones, and says "unknown" where a factor has no known value."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.judge import UNKNOWN, SceneReading, judge_clip, judge_clips
from unlearning_adapters.shapeworld.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    FACTORS,
    FRAMES,
    SHAPES,
    SIZE,
    TRAVEL,
    Body,
    Scene,
    centres,
    render,
    sample_scene,
    signed_distance,
)

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def scenes(seed: int, count: int, bodies: int = 1) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, bodies) for _ in range(count)]


def blur(clip: np.ndarray, sigma: float) -> np.ndarray:
    reach = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pad = [(6, 6) if dim == axis else (0, 0) for dim in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(clip, pad, mode="edge"), 13, axis=axis)
        clip = windows @ kernel
    return clip


def degrade(clip: np.ndarray, rng: np.random.Generator, sigma: float = 1.0, shift: float = 25.0) -> np.ndarray:
    off = blur(clip.astype(np.float64), sigma) + rng.uniform(-shift, shift, 3) + rng.normal(0, 8, clip.shape)
    return np.clip(np.rint(off), 0, 255).astype(np.uint8)


def draw(body: Body, background: str, distance: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Render a body of any outline: `distance(frame, x, y)` is negative inside it."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    clip = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.float32)
    clip[:] = BACKGROUNDS[background]
    for index, (x, y) in enumerate(centres(body)):
        cover = np.clip(0.5 - distance(index, columns - x, rows - y), 0, 1)[..., None]
        clip[index] += cover * (np.array(COLOURS[body.colour]) - clip[index])
    return np.rint(clip).astype(np.uint8)


def assert_accurate(truth: list[Scene], verdicts: list[SceneReading], least: float, most_confused: float) -> None:
    assert np.mean([verdict.valid for verdict in verdicts]) >= least
    for name in FACTORS:
        pairs = [(scene.factors[name], verdict.factors[name]) for scene, verdict in zip(truth, verdicts, strict=True)]
        wrong = Counter((true, seen) for true, seen in pairs if seen not in (true, UNKNOWN))
        assert np.mean([true == seen for true, seen in pairs]) >= least, (name, Counter(pairs))
        assert sum(wrong.values()) <= most_confused * len(pairs), wrong


def test_clean_renders_are_judged_right() -> None:
    truth = scenes(11, 240)
    verdicts = judge_clips(render(scene) for scene in truth)
    assert_accurate(truth, verdicts, least=0.98, most_confused=0.0)
    assert {verdict.bodies for verdict in verdicts} == {1}
    assert {verdict.reason for verdict in verdicts} == {""}
    assert np.allclose([verdict.displacement for verdict in verdicts], TRAVEL, atol=0.5)


@pytest.mark.parametrize(("sigma", "shift"), [(1.0, 25.0), (1.6, 40.0)])
def test_mildly_degraded_renders_are_judged_right(sigma: float, shift: float) -> None:
    rng = np.random.default_rng(12)
    truth = scenes(12, 200)
    verdicts = judge_clips(degrade(render(scene), rng, sigma, shift) for scene in truth)
    assert_accurate(truth, verdicts, least=0.95, most_confused=0.005)


def test_two_bodies_are_counted_and_the_first_is_judged() -> None:
    rng = np.random.default_rng(13)
    truth = scenes(13, 80, bodies=2)
    for verdicts in (
        judge_clips(render(scene) for scene in truth),
        judge_clips(degrade(render(scene), rng) for scene in truth),
    ):
        assert_accurate(truth, verdicts, least=0.95, most_confused=0.0)
        assert {verdict.bodies for verdict in verdicts} == {2}


@pytest.mark.parametrize(("frames", "size"), [(5, 64), (17, 64), (9, 96)])
def test_other_clip_shapes_are_judged_right(frames: int, size: int) -> None:
    truth = scenes(14, 40)
    verdicts = judge_clips(render(scene, frames, size) for scene in truth)
    assert_accurate(truth, verdicts, least=0.97, most_confused=0.0)
    assert np.allclose([verdict.displacement for verdict in verdicts], TRAVEL, atol=0.5)


def test_small_wobble_is_still_a_motion() -> None:
    rng = np.random.default_rng(15)
    for scene in scenes(15, 20):
        wobble = [(int(x), int(y)) for x, y in rng.integers(-1, 2, (FRAMES, 2))]
        clip = np.stack([np.roll(frame, step, (0, 1)) for frame, step in zip(render(scene), wobble, strict=True)])
        assert judge_clip(clip).factors == scene.factors


def test_grey_clips_have_no_colour() -> None:
    verdicts = []
    for scene in scenes(21, 60):
        luminance = render(scene) @ np.array([0.299, 0.587, 0.114])
        verdicts.append(judge_clip(np.repeat(np.rint(luminance)[..., None], 3, axis=-1).astype(np.uint8)))
    assert {verdict.colour for verdict in verdicts} == {UNKNOWN}
    assert sum(verdict.valid and verdict.shape != UNKNOWN for verdict in verdicts) > 30


def test_frozen_clips_are_static() -> None:
    for scene in scenes(22, 30):
        verdict = judge_clip(np.repeat(render(scene)[4:5], FRAMES, axis=0))
        assert verdict.factors == {**scene.factors, "motion": "static"}
        assert verdict.displacement < 0.01


def test_reversed_clips_show_the_opposite_motion() -> None:
    for scene in scenes(23, 30):
        motion = scene.factors["motion"]
        assert judge_clip(render(scene)[::-1]).factors == {**scene.factors, "motion": OPPOSITE[motion]}


def test_shuffled_frames_show_no_motion() -> None:
    rng = np.random.default_rng(24)
    for scene in scenes(24, 60):
        order = rng.permutation(FRAMES)
        assert abs(np.corrcoef(order, np.arange(FRAMES))[0, 1]) < 0.99
        assert judge_clip(render(scene)[order]).motion in (UNKNOWN, "static")


def test_diagonal_motion_is_unknown() -> None:
    body = Body("circle", "red", "right", 12.5, 32.0, 32.0)
    clip = np.stack([np.roll(frame, 2 * (index - 4), 0) for index, frame in enumerate(render(Scene((body,), "black")))])
    verdict = judge_clip(clip)
    assert verdict.valid
    assert verdict.motion == UNKNOWN
    assert verdict.displacement > TRAVEL


def test_each_factor_changes_alone() -> None:
    body = Body("circle", "red", "left", 13.0, 32.0, 32.0)
    base = judge_clip(render(Scene((body,), "black"))).factors
    for name, values in FACTORS.items():
        for value in values:
            changed = (
                Scene((body,), value) if name == "background" else Scene((replace(body, **{name: value}),), "black")
            )
            assert judge_clip(render(changed)).factors == {**base, name: value}


@pytest.mark.parametrize("mode", ["cut", "melt"])
def test_morphing_shapes_are_unknown(mode: str) -> None:
    rng = np.random.default_rng(25)
    for scene in scenes(25, 30):
        body = scene.bodies[0]
        other = str(rng.choice([shape for shape in SHAPES if shape != body.shape]))

        def distance(index: int, x: np.ndarray, y: np.ndarray, body: Body = body, other: str = other) -> np.ndarray:
            share = float(index > 3) if mode == "cut" else index / (FRAMES - 1)
            one, two = (signed_distance(shape, body.radius, x, y) for shape in (body.shape, other))
            return (1 - share) * one + share * two

        verdict = judge_clip(draw(body, scene.background, distance))
        assert verdict.factors == {**scene.factors, "shape": UNKNOWN}


def test_foreign_shapes_are_unknown() -> None:
    outlines: dict[str, Callable[[float, np.ndarray, np.ndarray], np.ndarray]] = {
        "ring": lambda r, x, y: np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r,
        "bar": lambda r, x, y: np.maximum(np.abs(x) - r, np.abs(y) - 0.4 * r),
        "ellipse": lambda r, x, y: np.hypot(x, y / 0.6) - r,
        "half disc": lambda r, x, y: np.maximum(np.hypot(x, y) - r, y),
        "saltire": lambda r, x, y: signed_distance("cross", r, (x + y) * 0.7071, (x - y) * 0.7071),
        "triangle that points down": lambda r, x, y: signed_distance("triangle", r, x, -y),
    }
    for name, outline in outlines.items():
        for scene in scenes(26, 10):
            body = scene.bodies[0]
            clip = draw(body, scene.background, lambda _, x, y, body=body, outline=outline: outline(body.radius, x, y))
            verdict = judge_clip(clip)
            assert verdict.factors == {**scene.factors, "shape": UNKNOWN}, name


@pytest.mark.parametrize("mode", ["cut", "mix", "fade", "split"])
def test_bodies_of_two_colours_are_unknown(mode: str) -> None:
    rng = np.random.default_rng(27)
    for scene in scenes(27, 30):
        body = scene.bodies[0]
        other = str(rng.choice([colour for colour in COLOURS if colour != body.colour]))
        one, two = render(scene), render(Scene((replace(body, colour=other),), scene.background))
        share = {
            "cut": np.arange(FRAMES) > 3,
            "mix": np.full(FRAMES, 0.5),
            "fade": np.linspace(0, 1, FRAMES),
            "split": np.arange(SIZE)[None, :] > centres(body)[:, :1],
        }[mode]
        share = share.reshape(FRAMES, 1, -1, 1).astype(np.float64)
        verdict = judge_clip(np.rint(one * (1 - share) + two * share).astype(np.uint8))
        assert verdict.colour == UNKNOWN


def test_foreign_colours_and_backgrounds_are_unknown() -> None:
    body = Body("square", "red", "up", 13.0, 32.0, 32.0)
    clip = render(Scene((body,), "black"))
    for colour in ((234, 126, 40), (180, 40, 200), (40, 200, 210), (240, 240, 240)):
        recoloured = np.where((clip == COLOURS["red"]).all(-1, keepdims=True), np.uint8(colour), clip)
        assert judge_clip(recoloured).colour == UNKNOWN
    for background in ((12, 12, 120), (70, 70, 70), (190, 190, 190)):
        ground = np.where((clip == BACKGROUNDS["black"]).all(-1, keepdims=True), np.uint8(background), clip)
        verdict = judge_clip(ground)
        assert verdict.valid
        assert verdict.background == UNKNOWN
        assert verdict.colour == "red"


def test_strange_clips_never_raise() -> None:
    rng = np.random.default_rng(28)
    for trial in range(150):
        frames, size = int(rng.integers(1, 11)), int(rng.integers(1, 70))
        clip = np.full((frames, size, size, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(int(rng.integers(0, 6))):
            top, left = rng.integers(0, size, 2)
            height, width = rng.integers(1, 40, 2)
            part = slice(*sorted(rng.integers(0, frames + 1, 2)))
            clip[part, top : top + height, left : left + width] = rng.integers(0, 256, 3)
        verdict = judge_clip(clip)
        assert verdict.valid or verdict == SceneReading(valid=False, reason=verdict.reason), trial
        assert np.isfinite(verdict.displacement)
        for name, value in verdict.factors.items():
            assert value in {*FACTORS[name], UNKNOWN, "static"}


def test_judging_leaves_the_clip_alone() -> None:
    clip = render(scenes(29, 1)[0])
    before = clip.copy()
    first, second = judge_clips([clip, clip])
    assert first == second
    assert np.array_equal(clip, before)


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (np.zeros((9, 64, 64, 3), dtype=np.float32), r"`clip` to be uint8 .* got float32 of shape \(9, 64, 64, 3\)"),
        (np.zeros((64, 64, 3), dtype=np.uint8), r"\(frames, size, size, 3\), but got uint8 of shape \(64, 64, 3\)"),
        (np.zeros((9, 64, 32, 3), dtype=np.uint8), r"square frames, and at least one, but got shape \(9, 64, 32, 3\)"),
        (np.zeros((0, 64, 64, 3), dtype=np.uint8), r"at least one, but got shape \(0, 64, 64, 3\)"),
        ([[1]], r"but got list"),
    ],
)
def test_wrong_clips_are_refused(clip: np.ndarray, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        judge_clip(clip)
