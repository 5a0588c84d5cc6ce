"""What a resumed training of CastWorld needs, as safetensors in bfloat16: half of the bytes, and no pickle."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearning_adapters.adapter.draft import draft_of

from .run import TrainingRun
from .wan_denoiser import DenoiserSettings, build_optimizers

WEIGHTS, MOMENTS = "weights.safetensors", "optimizers.safetensors"
ENDED = " A model whose training is over has none; train it further with --start."


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of `Training` as two files: weights with their average, and the state of the optimisers."""
    weights = {f"{kind}.{name}": value for kind in ("model", "average") for name, value in state[kind].items()}
    moments = {
        f"{number}.{index}.{name}": value
        for number, optimizer in enumerate(state["optimizers"])
        for index, values in optimizer["state"].items()
        for name, value in values.items()
    }
    for name, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
        halves = {key: _half(value) for key, value in tensors.items()}
        with draft_of(folder / name) as draft:
            save_file(halves, draft, metadata={"step": str(state["step"])})


def _half(value: Tensor) -> Tensor:
    """Return a tensor in bfloat16; counts of steps, which have no dimension, stay exact."""
    value = value.detach().cpu().contiguous()
    return value.clone() if value.ndim == 0 else value.to(torch.bfloat16).clone()


def read_checkpoint(folder: Path, run: TrainingRun, model: torch.nn.Module, settings: DenoiserSettings) -> None:
    """Put an exported model into a new run, as its checkpoints; a run that has some is refused.

    Args:
        folder: The exported model, with `vae` and `checkpoint`.
        run: Where to put it.
        model: One of the architecture, whose optimisers tell the form of their states.
        settings: Of the training.
    """
    _check_new(run, "--resume", folder / "checkpoint" / WEIGHTS)
    vae = _read_vae(folder)
    weights, step = _read(folder / "checkpoint" / WEIGHTS)
    moments, _ = _read(folder / "checkpoint" / MOMENTS)
    states: list[dict[str, Any]] = [optimizer.state_dict() for optimizer in build_optimizers(model, settings)]
    for key, value in moments.items():
        number, index, name = key.split(".", 2)
        states[int(number)]["state"].setdefault(int(index), {})[name] = value
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    for key, value in weights.items():
        kind, name = key.split(".", 1)
        parts[kind][name] = value
    run.save("denoiser", {**parts, "optimizers": states, "step": step})
    run.save("vae", vae)


def start_at(folder: Path, run: TrainingRun, model: Any, settings: DenoiserSettings) -> None:
    """Put the weights of an exported model into a new run, as its first step; arguments as those of `read_checkpoint`.

    The model's `transformer` is its denoiser's, and all else of it is as it is.
    """
    _check_new(run, "--start", folder / "transformer" / "config.json")
    vae = _read_vae(folder)
    denoiser = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.float32, local_files_only=True)
    model.transformer.load_state_dict(denoiser.state_dict())
    optimizers = [optimizer.state_dict() for optimizer in build_optimizers(model, settings)]
    weights = model.state_dict()
    run.save("denoiser", {"model": weights, "average": weights, "optimizers": optimizers, "step": 0})
    run.save("vae", vae)


def _check_new(run: TrainingRun, option: str, needed: Path) -> None:
    if (run.folder / "denoiser.pt").exists():
        raise SystemExit(f"{run.folder} holds a run already; leave {option} out to go on with it.")
    if not needed.exists():
        raise SystemExit(
            f"{option} needs an exported model, but there is no {needed}.{ENDED if needed.name == WEIGHTS else ''}"
        )


def _read_vae(folder: Path) -> dict[str, Any]:
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32, local_files_only=True)
    return {"model": vae.state_dict()}


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of a file in float32 and its step."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).float() for key in file.keys()}, int(file.metadata()["step"])  # noqa: SIM118
