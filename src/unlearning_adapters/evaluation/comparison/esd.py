"""ESD, "Erasing Concepts from Diffusion Models" (arXiv 2303.07345): a LoRA that is trained away from a concept.

The edited prediction for a prompt c that names the concept is drawn to the negatively guided one of the frozen base,
`e(x_t, "") - eta (e(x_t, c) - e(x_t, ""))`. As in the paper, x_t comes from the edited model itself, which denoises
with the prompt c up to a random step. The pipeline's own call does that, so that the model may be of any architecture.

Unlike the paper: a LoRA at the sites of our builder in place of the cross-attention's weights, so that all are compared
on the same layers; no guidance while x_t is made; and the calls that a run has, in place of random times between steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.building.site_selection import select_sites
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import DEFAULT_PAIRS, MAX_RANK, BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError, DenoiserError
from unlearning_adapters.pipelines.activations import check_no_cache
from unlearning_adapters.pipelines.running.denoiser_calls import Call, predictions, record_calls, text_of, with_text
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import Site, denoisers

from .site_lora import SiteLora, start_lora


@dataclass(frozen=True)
class EsdSettings:
    """How to train.

    Args:
        steps: Number of optimiser steps.
        learning_rate: Of Adam.
        rank: Rank of the LoRA, 1 to 64.
        eta: Negative guidance; the paper takes 1.
        batch_size: Number of prompts per step; pictures are taken one by one.
        denoising_steps: Steps of the pipeline's schedule, unless the call says; x_t is taken at one of them.
        seed: Seed of the LoRA, of the prompts' order, of the steps and of the noise.
    """

    steps: int = 60
    learning_rate: float = 1e-3
    rank: int = 8
    eta: float = 1.0
    batch_size: int = 4
    denoising_steps: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            right_type = isinstance(value, int) if kind is int else isinstance(value, (int, float))
            if not right_type or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"Expected `{field.name}` of ESD to be of type {kind.__name__}, but got {value!r}.")
            low = 0 if field.name == "seed" else 1
            if (kind is int and value < low) or (kind is float and value <= 0):
                limit = f"at least {low}" if kind is int else "above 0"
                raise ConfigError(f"Expected `{field.name}` of ESD to be {limit}, but got {value!r}.")
        if self.rank > MAX_RANK:
            raise ConfigError(f"Expected `rank` of ESD to be at most {MAX_RANK}, but got {self.rank}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return asdict(self)


def esd_prompts(concept: Concept) -> list[tuple[str, Any]]:
    """Return what is asked for, each with a picture or None: the concept's words, or its unsafe prompts without such.

    The paper takes the concept's name alone: a prompt that names more is pushed away with all that it names.
    """
    pairs = concept.pairs[:DEFAULT_PAIRS]
    prompts = concept.words or [pair.unsafe for pair in pairs if pair.text_differs]
    return list(zip(prompts, cycle([pair.unsafe_image for pair in pairs]), strict=False))


def train_esd(
    pipe: Any,
    concept: Concept,
    settings: EsdSettings = EsdSettings(),  # noqa: B008 - frozen
    *,
    sites: Sequence[Site] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SiteLora:
    """Train the LoRA; the pipeline is left as it was, bit for bit.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten; `esd_prompts` says which prompts are taken.
        settings: How.
        sites: Layers that the LoRA acts on; None takes those at which a builder edits text.
        call_kwargs: Further arguments of the pipeline's call, such as {"height": 480}.
        progress: Whether to show a progress bar.

    Returns:
        The LoRA; it acts inside of `SiteLora.acting`.

    Raises:
        ConceptError: If the pipeline takes no prompt, or the concept has none.
        ConfigError: If `call_kwargs` has an argument that the pipeline lacks.
        DenoiserError: If the pipeline has no denoiser, its cache skips blocks, or the training diverged.
    """
    training = _EsdTraining(pipe, concept, settings, sites, dict(call_kwargs or {}))
    lora = training.lora
    optimizer = torch.optim.Adam(lora.parameters, lr=settings.learning_rate)
    parameters = [parameter for network in training.networks.values() for parameter in network.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with tqdm(total=settings.steps, desc="ESD", unit="step", disable=not progress) as bar:
            for step in range(settings.steps):
                loss, gradients = training.step()
                if not math.isfinite(loss):
                    raise DenoiserError(
                        f"The training of ESD diverged: the loss of step {step + 1} is {loss}. Lower `learning_rate`, "
                        f"which is {settings.learning_rate:g}."
                    )
                for factor, gradient in zip(lora.parameters, gradients, strict=True):
                    factor.grad = gradient
                optimizer.step()
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return SiteLora({site: (down.detach(), up.detach()) for site, (down, up) in lora.factors.items()})


class _EsdTraining:
    """What stays the same while a LoRA is trained, and the source of all chance."""

    def __init__(
        self, pipe: Any, concept: Concept, settings: EsdSettings, sites: Sequence[Site] | None, call: dict[str, Any]
    ) -> None:
        self.pipe, self.settings, self.networks = pipe, settings, denoisers(pipe)
        check_no_cache(self.networks, settings.denoising_steps)
        self.run = PartialRun(pipe, call, any_video=False)
        self.asked = esd_prompts(concept)
        if not self.run.takes_prompt or not self.asked:
            raise ConceptError(
                f"ESD needs a pipeline that takes a prompt, and prompts that name the concept, but got "
                f"{type(pipe).__name__} and {len(self.asked)} prompts of {concept.name!r}. Add `words` to it."
            )
        if "num_inference_steps" in self.run.accepted and not {"sigmas", "timesteps"} & set(call):
            self.run.arguments.setdefault("num_inference_steps", settings.denoising_steps)
        self.calls = self.run.arguments.get("num_inference_steps") or settings.denoising_steps
        pictured = self.run.image is not None and any(picture is not None for _, picture in self.asked)
        self.size = 1 if self.run.one_by_one or pictured else settings.batch_size
        if sites is None:
            sites = select_sites(pipe, concept, concept.pairs[:DEFAULT_PAIRS], BuildConfig(sites="text"), call)
        self.lora = start_lora(pipe, sites, settings.rank, settings.seed)
        self.generator = torch.Generator("cpu").manual_seed(settings.seed)
        self.order: list[int] = []

    def step(self) -> tuple[float, Sequence[Tensor | None]]:
        """Return the loss at one x_t, and its gradient by each factor; None for those that took no part."""
        call, empty = self._recorded()
        with torch.no_grad():
            without, with_concept = predictions(self.networks, with_text(call, empty)), predictions(self.networks, call)
            targets = [
                e.float() - self.settings.eta * (c.float() - e.float())
                for e, c in zip(without, with_concept, strict=True)
            ]
        with torch.enable_grad():
            with self.lora.acting(self.pipe):
                outputs = predictions(self.networks, call)
            squares = [(one.float() - target).square() for one, target in zip(outputs, targets, strict=True)]
            loss = torch.cat([part.flatten() for part in squares]).mean()
            gradients = torch.autograd.grad(loss, self.lora.parameters, allow_unused=True)
        return loss.item(), gradients

    @torch.no_grad()
    def _recorded(self) -> tuple[Call, Call]:
        """Return a call of the edited denoiser at a random step, and the arguments that an empty prompt changes."""
        prompts, pictures = zip(*self._next(), strict=True)
        seeds = torch.randint(2**31, (self.size,), generator=self.generator).tolist()
        count = int(torch.randint(1, self.calls + 1, (1,), generator=self.generator))
        picture = pictures[0] if self.run.image else None
        with self.lora.acting(self.pipe):
            calls = record_calls(self.run, self.networks, prompts, seeds, count, picture)
        empty = text_of(self.run, self.networks, [""] * self.size, seeds, calls[0], picture)
        return calls[-1], empty

    def _next(self) -> list[tuple[str, Any]]:
        while len(self.order) < self.size:
            self.order += torch.randperm(len(self.asked), generator=self.generator).tolist()
        batch, self.order = self.order[: self.size], self.order[self.size :]
        return [self.asked[index] for index in batch]
