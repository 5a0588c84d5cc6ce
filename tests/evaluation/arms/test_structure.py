"""Structural similarity of clips against its formula, on frames of any size, and rows that have none."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import synthetic

from unlearning_adapters.evaluation.arms.samples import drift_between, frame_similarity
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.evaluate import rescore


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_windows(base: np.ndarray, clip: np.ndarray, sigma: float, half: int) -> float:
    """The formula, window by window, with loops."""
    places = np.arange(-half, half + 1)
    line = np.exp(-(places**2) / (2 * sigma**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for first, second in zip(base / 255, clip / 255, strict=True):
        for channel in range(3):
            x, y = (np.pad(side[..., channel], half, mode="reflect") for side in (first, second))
            for row in range(first.shape[0]):
                for column in range(first.shape[1]):
                    a, b = (side[row : row + len(window), column : column + len(window)] for side in (x, y))
                    m, n = (window * a).sum(), (window * b).sum()
                    v, w = (window * (a - m) ** 2).sum(), (window * (b - n) ** 2).sum()
                    s = (window * (a - m) * (b - n)).sum()
                    top = (2 * m * n + 0.01**2) * (2 * s + 0.03**2)
                    found.append(top / ((m**2 + n**2 + 0.01**2) * (v + w + 0.03**2)))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("height", "width", "sigma", "half"), [(16, 12, 1.5, 5), (6, 9, 1.5, 5), (8, 4, 3 / 3.5, 3), (2, 2, 1 / 3.5, 1)]
)
def test_it_is_the_formula_for_frames_of_any_size(height: int, width: int, sigma: float, half: int) -> None:
    base = noise(2, height, width, 3)
    clip = (0.7 * base + 0.3 * noise(2, height, width, 3, seed=1)).astype(np.uint8)
    found = frame_similarity(base, clip)
    assert found == pytest.approx(by_windows(base, clip, sigma, half), abs=1e-4)
    assert found < 0.99


@pytest.mark.parametrize("side", [2, 8, 32, 64])
def test_equal_clips_are_1_and_noise_is_far_from_it(side: int) -> None:
    base = noise(3, side, side, 3)
    assert frame_similarity(base, base) == 1.0
    other = frame_similarity(base, noise(3, side, side, 3, seed=1))
    assert other is not None and other < 0.5


def test_a_frame_of_one_pixel_has_no_structure() -> None:
    assert frame_similarity(noise(3, 1, 8, 3), noise(3, 1, 8, 3)) is None


def test_of_long_clips_it_looks_at_ten_frames_of_both_at_the_same_places() -> None:
    base = noise(41, 8, 8, 3)
    shown = np.linspace(0, 40, 10).round().astype(int)
    hidden = base.copy()
    hidden[np.setdiff1d(np.arange(41), shown)] = 0
    assert frame_similarity(base, hidden) == 1.0
    hidden[shown[3]] = 0
    assert frame_similarity(base, hidden) < 0.95


def test_without_torchmetrics_there_is_none_and_the_rest_of_the_drift_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    base, clip = noise(3, 8, 8, 3), noise(3, 8, 8, 3, seed=1)
    with_it = drift_between(base, clip)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)  # what an import of a missing one meets
    without = drift_between(base, clip)
    assert without == {**with_it, "ssim": None} and with_it["ssim"] is not None


def test_rows_of_before_are_read_and_count_as_not_measured(tmp_path: Path) -> None:
    report = synthetic(tmp_path)
    assert report.data["arms"]["edited"]["drift"]["all"]["ssim"]["count"] > 0
    lines = [json.loads(line) for line in (tmp_path / "rows-0.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("drift", {}).pop("ssim", None)
    (tmp_path / "rows-0.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert not any("ssim" in row.drift for row in Store(tmp_path).rows().values())
    again = rescore(tmp_path, progress=False)
    for name, arm in again.data["arms"].items():
        if name != "base":
            old = report.data["arms"][name]["drift"]["all"]
            nothing = {"value": None, "interval": None, "count": 0}
            assert arm["drift"]["all"] == {**old, "ssim": nothing}
