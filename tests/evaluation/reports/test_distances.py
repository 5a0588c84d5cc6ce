"""Distances of whole runs: on prompts that must survive, with a floor, and only where they mean something."""

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_runs import red_suite, scene, synthetic

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.evaluate import rescore
from unlearning_adapters.evaluation.reports.distances import RandomFeatures, extract, frechet, kernel, measure_distances
from unlearning_adapters.evaluation.reports.markdown import to_markdown

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")


def test_the_frechet_distance_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 3, generator=generator, dtype=torch.float64) * scale for scale in (1.0, 2.0))
    one, other = torch.cov(first.T), torch.cov(second.T)
    root = torch.linalg.eigvals(one @ other).sqrt().real.sum()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    assert frechet(first, second) == pytest.approx(float(mean + one.trace() + other.trace() - 2 * root), rel=1e-6)


def test_the_kernel_distance_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 4, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 0.5))

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [(k(x, x).sum() - k(x, x).trace()) / (20 * 19) for x in (first, second)]
    wanted = float(within[0] + within[1] - 2 * k(first, second).mean())
    assert kernel(first, second) == pytest.approx(wanted, rel=1e-5)


def test_a_run_gets_distances_on_prompts_that_must_survive(tmp_path: Path) -> None:
    synthetic(tmp_path, suite=red_suite(8))
    found = rescore(tmp_path, features="random", progress=False)
    edited, destroyed = (found.data["arms"][name]["distance"] for name in ("edited", "destroyed"))
    assert edited["clips"] == 8 and edited["frechet"] == pytest.approx(0, abs=1e-5)  # neighbours are as they were
    assert destroyed["frechet"] > 1
    # Of so few clips even two halves of the base are that far apart, which is why the floor stands beside it.
    assert destroyed["floor"]["clips"] == 4 and destroyed["floor"]["frechet"] > 1
    assert "features random 3D convolution, 8 clips" in to_markdown(found.data)


def test_features_must_be_a_finite_matrix() -> None:
    clip = scene({"colour": "red"})
    assert extract(RandomFeatures(), [clip]).shape == (1, 64)
    assert not torch.equal(extract(RandomFeatures(), [clip]), extract(RandomFeatures(), [clip[:, :, ::-1].copy()]))
    seen: list[Any] = []

    def wrong(clips: torch.Tensor) -> torch.Tensor:
        seen.append(clips)
        return torch.full((1, 2), float("nan"))

    with pytest.raises(EvaluationError, match="all finite"):
        measure_distances([clip] * 8, [clip] * 8, wrong)
    assert seen[0].shape == (1, 3, 9, 64, 64) and 0 <= seen[0].min() and 0.8 < seen[0].max() <= 1
