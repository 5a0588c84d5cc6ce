"""Frechet and kernel distances between clips of two arms, on features of a network that the caller gives.

They measure quality, not erasure: both are nearly blind to a concept that is gone. Take them on prompts that must
survive. What they are called depends on the features: only with those of I3D is it the "FVD" of papers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.metrics import GENERIC, NEIGHBOUR, UNRELATED
from unlearning_adapters.evaluation.suites.suite import Suite

LEAST = 8  # clips of each side
KEPT = (NEIGHBOUR, UNRELATED, GENERIC)  # roles of prompts whose clips must stay as they are
CHANNELS = 32  # of the random features


class RandomFeatures(nn.Module):
    """A fixed random 3D convolution: weak features that need no download, and that keep time.

    Args:
        seed: Seed of its weights.
        channels: Number of filters; there are twice as many features, means and deviations over space and time.
    """

    name = "random 3D convolution"

    def __init__(self, seed: int = 0, channels: int = CHANNELS) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        self.num_features = 2 * channels
        weight = (
            torch.randn(channels, 3, 3, 5, 5, generator=generator, dtype=torch.float32, device="cpu")
            / (3 * 3 * 5 * 5) ** 0.5
        )
        self.register_buffer("weight", weight)

    def forward(self, clips: Tensor) -> Tensor:
        """Return features of shape (clips, features) of clips (clips, 3, frames, height, width), values 0 to 1."""
        maps = torch.relu(
            nn.functional.conv3d(clips.float(), self.get_buffer("weight"), stride=(1, 2, 2), padding=(1, 2, 2))
        )
        flat = maps.flatten(2)
        return torch.cat([flat.mean(-1), flat.std(-1)], dim=1)


def measure_distances(
    reference: Sequence[Clip],
    clips: Sequence[Clip],
    features: Callable[[Tensor], Tensor] | None = None,
    name: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the Frechet and the kernel distance of two sets of clips, with the floor of the first.

    |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)) of the features' means and covariances, and the unbiased squared maximum
    mean discrepancy with the kernel (x.y / d + 1)^3, both by torchmetrics. The Frechet distance shrinks with the number
    of clips as about 1/n, so that both sets must be of one size; the floor is that of two halves of the reference, so
    at half of the size, and an upper bound.

    Args:
        reference: Clips of the base, of one shape.
        clips: Clips of another arm, as many.
        features: Network from clips (n, 3, frames, height, width), values 0 to 1, to (n, features); None takes
            `RandomFeatures`.
        name: What the features are called in the report; None takes their own name.
        seed: Seed of the halves and of the subsets of the kernel distance.

    Raises:
        EvaluationError: If torchmetrics is missing, or the sets are too small, of different sizes or shapes.
    """
    network: Any = RandomFeatures() if features is None else features
    if len(reference) != len(clips):
        raise EvaluationError(
            f"The Frechet distance depends on the number of clips, and got {len(reference)} and {len(clips)}. "
            "Give equally many of both."
        )
    if len(clips) < LEAST:
        raise EvaluationError(f"Expected at least {LEAST} clips for a distance, but got {len(clips)}.")
    if len({clip.shape for clip in (*reference, *clips)}) > 1:
        raise EvaluationError("Expected all clips of a distance to have one shape. Resize them alike first.")
    first, second = (extract(network, part) for part in (reference, clips))
    order = np.random.default_rng(seed).permutation(len(first))
    half = len(first) // 2
    one, other = first[order[:half]], first[order[half : 2 * half]]
    return {
        "features": name or str(getattr(network, "name", type(network).__name__)),
        "clips": len(clips),
        "frechet": frechet(first, second),
        "kernel": kernel(first, second, seed),
        "floor": {"clips": half, "frechet": frechet(one, other), "kernel": kernel(one, other, seed)},
    }


def distances_of_arms(
    store: Store, suite: Suite, features: Callable[[Tensor], Tensor] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the distances of every arm from the base, on the prompts that must survive.

    Args:
        store: The folder of the run.
        suite: Its suite.
        features: As for `measure_distances`.

    Returns:
        Distances by arm; {"error": text} where they cannot be taken.
    """
    roles = {part.name: part.role for part in suite.sets}
    rows = [row for row in store.rows().values() if row.clip and roles.get(row.set) in KEPT]
    base = {row.key[1:]: row for row in rows if row.arm == "base"}
    by_arm: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(row.arm for row in rows if row.arm != "base"):
        arm_rows = {row.key[1:]: row for row in rows if row.arm == arm and row.key[1:] in base}
        try:
            reference, clips = ([store.load_clip(side[key]) for key in arm_rows] for side in (base, arm_rows))
            by_arm[arm] = measure_distances(reference, clips, features)
        except EvaluationError as error:
            by_arm[arm] = {"error": str(error)}
    return by_arm


@torch.no_grad()
def extract(network: Callable[[Tensor], Tensor], clips: Sequence[Clip]) -> Tensor:
    """Return the features of clips, (clips, features), float64.

    Values are scaled here, from 0 to 255 to 0 to 1, and nowhere else: with a network of one's own, torchmetrics does
    not scale, whatever `normalize` says.

    Raises:
        EvaluationError: If the network gives no matrix, or numbers that are not finite.
    """
    rows = [network(torch.from_numpy(clip).movedim(-1, 0)[None].float() / 255) for clip in clips]
    rows_of_clips = torch.cat(rows)
    if rows_of_clips.ndim != 2 or len(rows_of_clips) != len(clips) or not rows_of_clips.isfinite().all():
        raise EvaluationError(
            f"Expected features of shape ({len(clips)}, features), all finite, but got {tuple(rows_of_clips.shape)}."
        )
    return rows_of_clips.double()


def frechet(first: Tensor, second: Tensor) -> float:
    """Return the Frechet distance of two sets of features (n, d)."""
    from_library = _library("fid", "FrechetInceptionDistance")
    metric = from_library(feature=_Identity(first.shape[1]), input_img_size=(first.shape[1],)).set_dtype(torch.float64)
    metric.update(first, real=True)
    metric.update(second, real=False)
    return float(metric.compute())


def kernel(first: Tensor, second: Tensor, seed: int = 0) -> float:
    """Return the unbiased kernel distance of two sets of features (n, d), over all of them at once."""
    from_library = _library("kid", "KernelInceptionDistance")
    metric = from_library(feature=_Identity(first.shape[1]), subsets=1, subset_size=len(first))
    metric.update(first, real=True)
    metric.update(second, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(metric.compute()[0])


class _Identity(nn.Module):
    """Features that are given as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def _library(module: str, name: str) -> Any:
    try:
        from importlib import import_module

        return getattr(import_module(f"torchmetrics.image.{module}"), name)
    except ImportError as error:
        raise EvaluationError(
            "Frechet and kernel distances need torchmetrics: pip install 'unlearning-adapters[evaluation]'."
        ) from error
