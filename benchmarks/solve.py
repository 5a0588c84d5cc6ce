"""The thin solve of the contrastive direction against a dense eigenvalue problem of the same numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unlearning_adapters.methods.paper import cpca_direction

from .measure import in_turn
from .report import Row, compare
from .sizes import Sizes

COMPONENTS = 100  # the paper's k
CONTRAST = 1.0
IF_MISSED = (
    "the thin solve grows with the cube of the {rows} rows, and dense eigh with that of the features, so the gain "
    "shrinks where many neutral tokens are kept"
)


def benchmark_solve(sizes: Sizes) -> Iterator[Row]:
    """Compare `cpca_direction` with `torch.linalg.eigh` of the features x features moments."""
    for case, (differences, neutral) in sizes.solve_rows.items():
        yield from _case(case, sizes, differences, neutral)


def _case(case: str, sizes: Sizes, differences: int, neutral: int) -> Iterator[Row]:
    features = sizes.solve_features
    problem = _rows(differences, features, 0), _rows(neutral, features, 1), _rows(1, features, 2)[0]
    thin = in_turn(
        [[("thin", lambda: cpca_direction(*problem, COMPONENTS, CONTRAST))]], sizes.rounds, f"solve/{case}, thin"
    )
    direction = cpca_direction(*problem, COMPONENTS, CONTRAST).read[0]
    for dtype in (torch.float64, torch.float32):
        precision = str(dtype).removeprefix("torch.")
        found: list[Tensor] = []
        # Once is enough for tens of seconds.
        dense = in_turn(
            [[("dense", lambda dtype=dtype, found=found: found.append(_dense(*problem, dtype)))]],
            rounds=1,
            label=f"solve/{case}, dense {precision}",
            warm_up=0,
        )
        cosine = float(torch.nn.functional.cosine_similarity(direction.double(), found[0].double(), dim=0))
        yield compare(
            f"solve/{case}/eigh-{precision}",
            f"direction of {differences} token differences and {neutral} neutral tokens of {features} features, "
            f"k = {COMPONENTS}, in float64, against dense torch.linalg.eigh in {precision}, run once "
            f"(both agree to {abs(1 - cosine):.0e} in cosine)",
            thin["thin"],
            dense["dense"],
            at_least=50,
            if_missed=IF_MISSED.format(rows=differences + neutral),
        )


def _dense(differences: Tensor, neutral: Tensor, r: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the direction as the paper writes it down, with moments of size features x features."""
    differences, neutral, r = differences.to(dtype), neutral.to(dtype), r.to(dtype)
    neutral = neutral - neutral.mean(dim=0)
    moment = differences.T @ differences / len(differences) - CONTRAST * (neutral.T @ neutral) / len(neutral)
    values, vectors = torch.linalg.eigh(moment)
    rounding = values.abs().max() * (1e-9 if dtype == torch.float64 else 1e-5)
    largest = vectors[:, values > rounding][:, -COMPONENTS:]
    return torch.nn.functional.normalize(largest @ (largest.T @ r), dim=0)


def _rows(count: int, features: int, seed: int) -> Tensor:
    """Return rows with a falling spectrum, as activations have."""
    maker = torch.Generator().manual_seed(seed)
    scale = torch.linspace(1, 0.1, features).square()
    return torch.randn(count, features, generator=maker) * scale
