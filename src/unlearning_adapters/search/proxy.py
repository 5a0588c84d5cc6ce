"""How well an edit works, without sampling and without a detector: two numbers from single calls of the denoiser.

The user's own pipeline runs once per prompt, for a few steps without guidance, while hooks record what its denoiser is
called with. From then on the denoiser alone is called again with those inputs, edited or not.

`leftover`: with u what the base predicts for a prompt that names the concept, and s_1 ... s_m what it predicts from the
same latents for the same sentence with other words in the concept's place, g is the component of `u - s_1` that is
orthogonal to all `s_j - s_1`: what tells the concept from all of its counterparts. `leftover = <e - s_1, g> / |g|^2` of
the edited prediction e is 1 where nothing was removed and 0 where e lies anywhere among the counterparts. (With one
counterpart alone an edit that lands on another one looks as if nothing had been removed.)

`drift = |e - b| / |b - b_0|` of a prompt that must not change, b and e what base and edited denoiser predict, b_0 what
the base predicts without a prompt: 1 is a change as large as all that the prompt does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.errors import ConceptError, DenoiserError
from unlearning_adapters.pipelines.activations import check_no_cache
from unlearning_adapters.pipelines.running.denoiser_calls import Call, predictions, record_calls, text_of, with_text
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import denoisers

from .held_out import ProxyPrompts

STEPS = 4
QUANTILE = 0.9
SAME = 1e-5  # share of a difference that is rounding


@dataclass(frozen=True)
class Score:
    """What the proxy measured.

    Args:
        leftover: Per prompt that names the concept: 1 where nothing is removed, 0 where all is, below 0 beyond.
        drift: Per prompt that must not change: 0 where nothing changed.
    """

    leftover: tuple[float, ...]
    drift: tuple[float, ...]

    @property
    def mean_leftover(self) -> float:
        """Mean of the leftovers, those below 0 as 0."""
        return float(torch.tensor(self.leftover, dtype=torch.float32, device="cpu").clamp(min=0).mean())

    @property
    def most_leftover(self) -> float:
        """The 0.9 quantile of the leftovers, not below 0: what an edit must bring down."""
        return float(torch.tensor(self.leftover, dtype=torch.float32, device="cpu").clamp(min=0).quantile(QUANTILE))

    @property
    def mean_drift(self) -> float:
        """Mean of the drifts."""
        return float(torch.tensor(self.drift, dtype=torch.float32, device="cpu").mean())


@dataclass
class _ProbedCall(Call):
    """A call, and what is compared with its prediction, one row per prompt."""

    probe: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu")
    )  # g / |g|^2, or the base's own prediction
    offset: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.float32, device="cpu")
    )  # <s_1, g> / |g|^2, or |b - b_0|


class Proxy:
    """The recorded inputs of a pipeline's denoiser for some prompts; `measure` says what it makes of them now.

    Making one leaves the pipeline as it was.

    Args:
        pipe: A diffusers pipeline, as the base that edits are compared with.
        prompts: Prompts that name the concept, with counterparts, and prompts that must not change.
        steps: Number of denoising steps, unless `call_kwargs` sets it, and largest number of calls that are compared.
        batch_size: Number of prompts per call.
        seed: Seed of the first prompt's noise; a prompt shares its noise with its counterparts.
        call_kwargs: Further arguments of the pipeline's call, such as {"height": 480}.

    Raises:
        ConceptError: If there are no prompts of one of the two kinds, or the pipeline takes none.
        DenoiserError: If the pipeline has no denoiser, or its cache skips blocks.

    Example:
        >>> proxy = Proxy(pipe, split_concept(concept).validation)
        >>> pipe.load_unlearning_adapter(adapter)
        >>> proxy.measure().most_leftover
    """

    def __init__(
        self,
        pipe: Any,
        prompts: ProxyPrompts,
        *,
        steps: int = STEPS,
        batch_size: int = 8,
        seed: int = 0,
        call_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not prompts.forget or not prompts.retain or not all(item.safe for item in prompts.forget):
            raise ConceptError(
                "Expected prompts that name the concept, each with a counterpart, and prompts that must not change, "
                f"but got {len(prompts.forget)} and {len(prompts.retain)}."
            )
        self.networks = denoisers(pipe)
        check_no_cache(self.networks, steps)
        arguments = dict(call_kwargs or {})
        run = PartialRun(pipe, arguments, any_video=False)
        if not run.takes_prompt:
            raise ConceptError(f"{type(pipe).__name__} takes no prompt, and the proxy compares prompts alone.")
        if "num_inference_steps" in run.accepted and not {"sigmas", "timesteps"} & set(arguments):
            run.arguments.setdefault("num_inference_steps", steps)
        # Stopped before the end: modular pipelines decode what they made, and refuse not to.
        self.calls = min(steps, run.arguments.get("num_inference_steps") or steps)
        self.run, self.size = run, 1 if run.one_by_one else batch_size
        self.forget = self._batches(len(prompts.forget), lambda indices: self._concept(prompts, indices, seed))
        self.retain = self._batches(len(prompts.retain), lambda indices: self._unchanged(prompts, indices, seed))

    @torch.no_grad()
    def measure(self) -> Score:
        """Return what the denoiser predicts now for the recorded inputs, against what the base predicted."""
        leftover, drift = [], []
        for calls in self.forget:
            left = [(self._again(call) * call.probe).sum(dim=1) - call.offset for call in calls]
            leftover += torch.stack(left).sum(dim=0).tolist()
        for calls in self.retain:
            distance = torch.stack([(self._again(call) - call.probe).square().sum(dim=1) for call in calls]).sum(dim=0)
            whole = torch.stack([call.offset.square() for call in calls]).sum(dim=0)
            drift += (distance / whole).sqrt().tolist()
        return Score(tuple(leftover), tuple(drift))

    def _batches(self, count: int, make: Callable[[range], list[_ProbedCall]]) -> list[list[_ProbedCall]]:
        """Record all batches; prompt by prompt where the predictions of a batch cannot be told apart."""
        try:
            return [make(range(start, min(start + self.size, count))) for start in range(0, count, self.size)]
        except _PackedError:
            if self.size == 1:
                raise
            self.size = 1
            return self._batches(count, make)

    @torch.no_grad()
    def _concept(self, prompts: ProxyPrompts, indices: range, seed: int) -> list[_ProbedCall]:
        items, seeds = [prompts.forget[i] for i in indices], [seed + i for i in indices]
        calls = self._record([item.prompt for item in items], seeds)
        count = max(len(item.safe) for item in items)
        # A prompt with fewer counterparts repeats its last one, which adds nothing to their span.
        swaps = [
            self._text_of([item.safe[min(number, len(item.safe) - 1)] for item in items], seeds, calls[0])
            for number in range(count)
        ]
        for call in calls:
            unsafe = self._predict(call, len(items))
            safe = torch.stack([self._predict(with_text(call, swap), len(items)) for swap in swaps], dim=1)
            call.probe = torch.stack([_telling(one, others) for one, others in zip(unsafe, safe, strict=True)])
            call.offset = (safe[:, 0] * call.probe).sum(dim=1)
        informative = torch.stack([call.probe.any(dim=1) for call in calls]).sum(dim=0)
        if not informative.all():
            raise _alike(items[int(informative.argmin())].prompt, "its counterparts")
        for call in calls:  # the mean over the calls that tell
            call.probe, call.offset = call.probe / informative[:, None], call.offset / informative
        return calls

    @torch.no_grad()
    def _unchanged(self, prompts: ProxyPrompts, indices: range, seed: int) -> list[_ProbedCall]:
        seeds = [seed + i for i in indices]
        calls = self._record([prompts.retain[i] for i in indices], seeds)
        empty = self._text_of([""] * len(indices), seeds, calls[0])
        for call in calls:
            call.probe = self._predict(call, len(indices))
            call.offset = (call.probe - self._predict(with_text(call, empty), len(indices))).norm(dim=1)
        whole = torch.stack([call.offset for call in calls]).sum(dim=0)
        if not whole.all():
            raise _alike(prompts.retain[indices[int(whole.argmin())]], "an empty prompt")
        return calls

    def _record(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[_ProbedCall]:
        records = record_calls(self.run, self.networks, prompts, seeds, self.calls)
        return [_ProbedCall(call.component, call.args, call.kwargs) for call in records]

    def _text_of(self, prompts: Sequence[str], seeds: Sequence[int], first: Call) -> Call:
        return text_of(self.run, self.networks, prompts, seeds, first)

    def _again(self, call: _ProbedCall) -> Tensor:
        return self._predict(call, len(call.offset))

    def _predict(self, call: Call, rows: int) -> Tensor:
        """Return what a denoiser predicts, one row per prompt, in float32 on the CPU."""
        parts = predictions(self.networks, call)
        if any(part.ndim == 0 or part.shape[0] != rows for part in parts) and rows > 1:
            raise _PackedError("The predictions of a batch of prompts cannot be told apart.")
        return torch.cat([part.reshape(rows, -1).to("cpu", torch.float32) for part in parts], dim=1)


class _PackedError(DenoiserError):
    """A denoiser joins all prompts of a batch to one sequence."""


def _telling(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Return `g / |g|^2`, g what tells a prediction from all of some others; zeros if it lies among them.

    Args:
        unsafe: Prediction, shape (values,).
        safe: Predictions of the counterparts, shape (counterparts, values).
    """
    gap = (unsafe - safe[0]).double()
    _, size, basis = torch.linalg.svd((safe[1:] - safe[0]).double(), full_matrices=False)
    basis = basis[size > SAME * gap.norm()]
    component = gap - (basis @ gap) @ basis
    if not float(component.norm()) > SAME * float(unsafe.norm()):
        return torch.zeros_like(unsafe)
    scaled: Tensor = component / component.square().sum()
    return scaled.float()


def _alike(prompt: str, other: str) -> ConceptError:
    return ConceptError(
        f"The denoiser predicts the same for {prompt!r} and for {other}, so that there is nothing to compare with. "
        "Give prompts that differ more."
    )
