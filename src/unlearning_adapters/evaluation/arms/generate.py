"""Make clips through the pipeline's own call, and say under which conditions that happened."""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.suites.suite import Case, Suite
from unlearning_adapters.pipelines.sites import denoisers

LIBRARIES = ("unlearning-adapters", "torch", "diffusers", "transformers", "numpy")
OWN_ARGUMENTS = ("prompt", "generator", "output_type")
TEXTS = ("prompt_", "negative_prompt")  # how the names of further texts begin: `prompt_2`, `negative_prompt_2`
UNSAID = {"batch": 1}  # older runs have no batches, and do not say so: they go on as they are
GENERATOR_DEVICE = "cpu"  # the same noise on every machine; a CUDA generator gives other noise for the same seed


@torch.no_grad()
def generate_batch(pipe: Any, cases: Sequence[Case], call: Mapping[str, Any], texts: Sequence[str]) -> Sequence[Any]:
    """Return the frames of some cases, clip by clip, made by one call of the pipeline as it is now.

    Each clip has a generator of its own, so that its noise is the same in any batch; the rest of the computation is the
    same up to rounding. One case alone is asked for with a text and a generator, not with lists of one.

    Args:
        pipe: A diffusers pipeline, edited or not.
        cases: Prompts and seeds, which share the arguments of their call; one with a picture is alone.
        call: Further arguments of the pipeline's call.
        texts: What to ask for in each case.

    Raises:
        EvaluationError: If the pipeline returns no frames.
    """
    prompt = cases[0].prompt
    arguments = {**call, **prompt.call, "output_type": "np"}
    if prompt.image:
        from diffusers.utils import load_image

        arguments["image"] = load_image(prompt.image)
    generators = [torch.Generator(GENERATOR_DEVICE).manual_seed(case.seed) for case in cases]
    if len(cases) == 1:
        output = pipe(prompt=texts[0], generator=generators[0], **arguments)
    else:
        output = pipe(prompt=list(texts), generator=generators, **for_each(arguments, len(cases)))
    if not hasattr(output, "frames"):
        raise EvaluationError(
            f"{type(pipe).__name__} returned no frames: only pipelines that make clips are evaluated."
        )
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


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Switch the pipeline's own progress bar off, and put it back."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    shown = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**{"disable": False, **shown})


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise `EvaluationError` if the pipeline's call does not take an argument, or it is one that is set here."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name in OWN_ARGUMENTS:
            raise EvaluationError(f"The argument `{name}` is set by the evaluation itself. Leave it out.")
        if name not in accepted and not any(item.kind is item.VAR_KEYWORD for item in accepted.values()):
            raise EvaluationError(f"{type(pipe).__name__} takes no `{name}`. Leave it out of the generation settings.")


def conditions_of(pipe: Any, suite: Suite, batch: int = 1) -> dict[str, Any]:
    """Return all that decides what is generated, as plain JSON types.

    Two arms, or two runs, can be compared only if these are the same. Versions of libraries are no part of the hash.

    Args:
        pipe: The pipeline.
        suite: The suite.
        batch: Clips per call: clips made in other batches differ in their last bits.
    """
    networks = denoisers(pipe)
    first = next(iter(networks.values()))
    parameter = next(first.parameters())
    scheduler = getattr(pipe, "scheduler", None)
    config = {k: v for k, v in dict(getattr(scheduler, "config", {})).items() if not k.startswith("_")}
    compared = {
        "pipeline": type(pipe).__name__,
        "model": model_name(pipe),
        "denoisers": {name: type(network).__name__ for name, network in networks.items()},
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "generator_device": GENERATOR_DEVICE,
        "scheduler": type(scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, sort_keys=True, default=str)),
        "generation": json.loads(json.dumps(dict(suite.generation), sort_keys=True, default=str)),
        "suite": suite.sha256,
        "batch": batch,
    }
    return {**compared, "hash": conditions_hash(compared), "versions": {name: _version(name) for name in LIBRARIES}}


def conditions_hash(conditions: Mapping[str, Any]) -> str:
    """Return a short hash of conditions, without versions and what older runs do not say."""
    compared = {
        name: value
        for name, value in conditions.items()
        if name not in ("hash", "versions") and (name, value) not in UNSAID.items()
    }
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def model_name(pipe: Any) -> str:
    """Return the Hub id of a pipeline; of a local folder its last part, for paths are private."""
    config: Any = getattr(pipe, "config", None) or {}
    name = str(config.get("_name_or_path") or "")
    return name if name.count("/") == 1 and not name.startswith(("/", ".")) else name.rstrip("/").rpartition("/")[2]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
