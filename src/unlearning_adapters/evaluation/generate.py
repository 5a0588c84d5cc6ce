"""Make one clip through the pipeline's own call, and say under which conditions that happened."""

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.media import Clip, to_clip
from unlearning_adapters.sites import denoisers

from .suite import Case, Suite

LIBRARIES = ("unlearning-adapters", "torch", "diffusers", "transformers", "numpy")
OWN_ARGUMENTS = ("prompt", "generator", "output_type")
GENERATOR_DEVICE = "cpu"  # the same noise on every machine; a CUDA generator gives other noise for the same seed


@torch.no_grad()
def generate_clip(pipe: Any, case: Case, call: Mapping[str, Any], text: str | None = None) -> Clip:
    """Return the clip of one case with the pipeline as it is now.

    Args:
        pipe: A diffusers pipeline, edited or not.
        case: Prompt and seed.
        call: Further arguments of the pipeline's call.
        text: What to ask for in place of the case's own prompt.

    Raises:
        EvaluationError: If the pipeline returns no frames.
    """
    arguments = {**call, **case.prompt.call}
    if case.prompt.image:
        from diffusers.utils import load_image

        arguments["image"] = load_image(case.prompt.image)
    generator = torch.Generator(GENERATOR_DEVICE).manual_seed(case.seed)
    output = pipe(prompt=text or case.prompt.text, generator=generator, output_type="np", **arguments)
    if not hasattr(output, "frames"):
        raise EvaluationError(
            f"{type(pipe).__name__} returned no frames: only pipelines that make clips are evaluated."
        )
    return to_clip(output.frames[0])


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


def conditions_of(pipe: Any, suite: Suite) -> dict[str, Any]:
    """Return all that decides what is generated, as plain JSON types.

    Two arms, or two runs, can be compared only if these are the same. Versions of libraries are no part of the hash.

    Args:
        pipe: The pipeline.
        suite: The suite.
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
    }
    return {**compared, "hash": conditions_hash(compared), "versions": {name: _version(name) for name in LIBRARIES}}


def conditions_hash(conditions: Mapping[str, Any]) -> str:
    """Return a short hash of conditions, without versions."""
    compared = {name: value for name, value in conditions.items() if name not in ("hash", "versions")}
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
