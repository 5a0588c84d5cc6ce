"""`generate`: make clips through the pipeline's own call, several at once."""

import contextlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.errors import EvaluationError

OWN_ARGUMENTS = ("prompt", "generator", "output_type")
TEXTS = ("prompt_", "negative_prompt")  # how the names of further texts begin: `prompt_2`, `negative_prompt_2`
GENERATOR_DEVICE = "cpu"  # the same noise on every machine; a CUDA generator gives other noise for the same seed
MANY = re.compile(r"list|sequence|tuple|iterable|\bany\b", re.IGNORECASE)  # in the annotation of an argument
LISTS = {"prompt": "prompts", "generator": "generators"}


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make.

    Args:
        text: The prompt.
        seed: Seed of its noise.
        detector_prompt: The prompt that detectors get, "" for `text`.
        image: Picture for an image-to-video pipeline (a path), "" for none.
        call: Arguments of the pipeline's call for this clip alone.
        embeds: What the denoiser reads in place of the prompt, of shape (1, tokens, width); None encodes the prompt.
        latents: Latents to start from, of shape (1, ...); None draws noise.
    """

    text: str
    seed: int
    detector_prompt: str = ""
    image: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)
    embeds: Tensor | None = None
    latents: Tensor | None = None

    def joins(self, other: "ClipRequest") -> bool:
        """Tell whether one call can make both clips.

        They need equal call arguments; arguments that JSON cannot hold must be the same object. A clip with a picture
        is alone: pipelines differ in whether they take one picture for all prompts or one for each.
        """
        if self.image or other.image:
            return False
        if (self.embeds is None, self.latents is None) != (other.embeds is None, other.latents is None):
            return False
        first, second = (json.dumps(dict(one.call), sort_keys=True, default=id) for one in (self, other))
        return first == second


class FinalLatents:
    """Keeps the latents of clips after their last step: give it to a pipeline's call as `callback_on_step_end`.

    Example:
        >>> latents = FinalLatents()
        >>> pipe(prompt, callback_on_step_end=latents)
        >>> latents.stacked.shape
    """

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the latents if the step is the last one; change nothing."""
        del timestep
        if step == pipe.num_timesteps - 1:
            self._batches.append(tensors["latents"].detach().cpu())
        return {}

    @property
    def stacked(self) -> Tensor:
        """Latents of all clips so far, shape (clips, ...)."""
        return torch.cat(self._batches)


@torch.no_grad()
def generate(
    pipe: Any,
    requests: Sequence[ClipRequest],
    call: Mapping[str, Any] | None = None,
    batch: int = 1,
    output_type: str = "np",
) -> list[Any]:
    """Return what a pipeline makes, one item per request, in several calls of `batch` clips at most.

    Args:
        pipe: A diffusers pipeline, edited or not.
        requests: The clips to make.
        call: Further arguments of the pipeline's call.
        batch: Clips per call.
        output_type: "np" for frames, "latent" for latents.

    Raises:
        EvaluationError: If the pipeline returns no frames, or another number of clips.
    """
    with quiet(pipe):
        return [clip for group in batches(requests, batch) for clip in generate_batch(pipe, group, call, output_type)]


@torch.no_grad()
def generate_batch(
    pipe: Any, requests: Sequence[ClipRequest], call: Mapping[str, Any] | None = None, output_type: str = "np"
) -> Sequence[Any]:
    """Return what one call of the pipeline makes, one item per request; arguments as in `generate`.

    Each clip has a generator of its own, so that its noise is the same in any batch; the rest of the computation is the
    same up to rounding. One clip alone is asked for with a text and a generator, not with lists of one.

    Raises:
        EvaluationError: If the pipeline returns no frames.
    """
    first, count = requests[0], len(requests)
    arguments: dict[str, Any] = {**(call or {}), **first.call, "output_type": output_type}
    if count > 1:
        arguments = for_each(arguments, count)
    generators = [torch.Generator(GENERATOR_DEVICE).manual_seed(request.seed) for request in requests]
    arguments["generator"] = generators[0] if count == 1 else generators
    if first.embeds is None:
        arguments["prompt"] = first.text if count == 1 else [request.text for request in requests]
    else:
        arguments["prompt_embeds"] = torch.cat([request.embeds for request in requests if request.embeds is not None])
    if first.latents is not None:
        arguments["latents"] = torch.cat([request.latents for request in requests if request.latents is not None])
    if first.image:
        from diffusers.utils import load_image

        arguments["image"] = load_image(first.image)
    output = pipe(**arguments)
    if not hasattr(output, "frames"):
        raise EvaluationError(f"{type(pipe).__name__} returned no frames. Take a pipeline that makes clips.")
    frames: Sequence[Any] = output.frames
    return frames


def for_each(arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return arguments with each further text, such as `negative_prompt`, once per prompt.

    Most pipelines repeat a single text themselves; those made like Stable Diffusion's refuse one beside a list.
    """
    return {
        name: [value] * count if isinstance(value, str) and name.startswith(TEXTS) else value
        for name, value in arguments.items()
    }


def batches(requests: Sequence[ClipRequest], size: int) -> Iterator[list[ClipRequest]]:
    """Yield requests, in order, in groups of at most `size` that one call can make (`ClipRequest.joins`)."""
    group: list[ClipRequest] = []
    for request in requests:
        if group and (len(group) == size or not group[0].joins(request)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Switch the pipeline's own progress bar off, and put it back."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    settings = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**{"disable": False, **settings})


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise `EvaluationError` if the pipeline's call does not take an argument, or it is one that is set here."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name in OWN_ARGUMENTS:
            raise EvaluationError(f"The argument `{name}` is set by the evaluation itself. Leave it out.")
        if name not in accepted and not any(item.kind is item.VAR_KEYWORD for item in accepted.values()):
            raise EvaluationError(f"{type(pipe).__name__} takes no `{name}`. Leave it out of the generation settings.")


def check_batch(pipe: Any, size: int) -> None:
    """Raise `EvaluationError` if `size` is not a number of clips, or the pipeline's call takes no lists.

    If the signature of the call does not tell, the call is tried, and `check_count` checks its result.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise EvaluationError(f"Expected the batch to be a whole number of clips from 1, but got {size!r}.")
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name, plural in LISTS.items() if size > 1 else ():
        parameter = accepted.get(name)
        if parameter is None or parameter.annotation is parameter.empty:
            continue
        if not MANY.search(str(parameter.annotation)):
            raise EvaluationError(
                f"{type(pipe).__name__} takes no list of {plural}, and cannot make {size} clips in one call. "
                "Use batch 1."
            )


def check_count(pipe: Any, frames: Sequence[Any], requests: Sequence[ClipRequest]) -> None:
    """Raise `EvaluationError` if a call for several prompts did not return one clip for each."""
    if len(requests) > 1 and len(frames) != len(requests):
        raise EvaluationError(
            f"{type(pipe).__name__} returned {len(frames)} clip{'s' if len(frames) != 1 else ''} for {len(requests)} "
            "prompts, so that it is unknown which clip belongs to which prompt. Use batch 1, and another folder."
        )
