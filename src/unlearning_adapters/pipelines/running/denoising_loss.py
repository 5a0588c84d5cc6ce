"""The loss that a denoiser is trained with, by flow matching or by diffusion, through its pipeline's own arguments."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.hooks import before_calls
from unlearning_adapters.pipelines.sites import denoisers

from .partial_run import PartialRun, StopRun

LATENTS = ("hidden_states", "sample")  # what denoisers call the latents
INPUTS = ("timestep", "encoder_hidden_states")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Denoising:
    """A denoiser, and how its pipeline calls it.

    Args:
        network: The denoiser.
        others: Arguments that stay the same, such as `return_dict`.
        scale: Timestep of pure noise, of flow matching.
        latents: What the denoiser calls the latents.
        kept: Share of the clean signal at each timestep (the cumulative product of the alphas), shape (timesteps,);
            None for flow matching.
        prediction: What a denoiser of diffusion predicts: "epsilon", "v_prediction" or "sample".
        dtype: Type of the latents that the denoiser reads.
    """

    network: nn.Module
    others: dict[str, Any]
    scale: float
    latents: str = LATENTS[0]
    kept: Tensor | None = None
    prediction: str = PREDICTIONS[0]
    dtype: torch.dtype = torch.float32

    def loss(self, clean: Tensor, embeds: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the prediction at random noise levels.

        Flow matching: E |v(x_s, s) - (noise - x_0)|^2 with x_s = (1 - s) x_0 + s noise, s logit-normal. Diffusion:
        E |f(x_t, t) - target|^2 with x_t = sqrt(k_t) x_0 + sqrt(1 - k_t) noise, t uniform, and the target noise,
        v = sqrt(k_t) noise - sqrt(1 - k_t) x_0, or x_0.
        """
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32, device="cpu").to(clean)
        noisy, timestep, target = (self._flow if self.kept is None else self._diffusion)(clean, noise, generator)
        call = {
            **self.others,
            self.latents: noisy.to(self.dtype),
            "timestep": timestep,
            "encoder_hidden_states": embeds,
        }
        output = self.network(**call)
        prediction = output[0] if isinstance(output, tuple) else output.sample
        error: Tensor = (prediction.float() - target.float()).square().mean()
        return error

    def _flow(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        level = torch.sigmoid(torch.randn(len(clean), generator=generator, dtype=torch.float32, device="cpu")).to(clean)
        spread = level.view(-1, *[1] * (clean.ndim - 1))
        return (1 - spread) * clean + spread * noise, level * self.scale, noise - clean

    def _diffusion(self, clean: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        assert self.kept is not None
        timestep = torch.randint(0, len(self.kept), (len(clean),), generator=generator)
        share = self.kept[timestep].to(clean).view(-1, *[1] * (clean.ndim - 1))
        signal, spread = share.sqrt(), (1 - share).sqrt()
        targets = {"epsilon": noise, "v_prediction": signal * noise - spread * clean, "sample": clean}
        return signal * clean + spread * noise, timestep.to(clean.device), targets[self.prediction]


def one_denoiser(pipe: Any) -> tuple[str, nn.Module]:
    """Return the only denoiser of a pipeline with its name; `DenoiserError` if there are several."""
    networks = list(denoisers(pipe).items())
    if len(networks) > 1:
        names = ", ".join(name for name, _ in networks)
        raise DenoiserError(
            f"{type(pipe).__name__} has several denoisers ({names}), but a soft prompt or a LoRA is learned "
            "through one. Leave soft prompts (`soft_prompts`) and attacks that learn out."
        )
    return networks[0]


def denoising_of(pipe: Any, call: Mapping[str, Any], clean: Tensor) -> Denoising:
    """Return how a pipeline calls its denoiser.

    Args:
        pipe: A diffusers pipeline.
        call: Arguments of its call.
        clean: Clean latents as the denoiser reads them, shape (clips, ...).

    Raises:
        DenoiserError: If there are several denoisers, if the schedule is not known, or if the denoiser does not read
            latents and text embeddings as they are.
    """
    name = type(pipe).__name__
    _, network = one_denoiser(pipe)
    scheduler = pipe.scheduler
    flow = "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))
    alphas, prediction = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler.config, "prediction_type", None)
    if not flow and (alphas is None or prediction not in PREDICTIONS):
        raise DenoiserError(
            f"{name} has the scheduler {type(scheduler).__name__}, whose noise levels or prediction are not known here."
        )
    first = _first_call(pipe, call, network)
    latents = next((key for key in LATENTS if isinstance(first.get(key), Tensor)), LATENTS[0])
    missing = [key for key in (latents, *INPUTS) if not isinstance(first.get(key), Tensor)]
    if missing:
        raise DenoiserError(f"{name} gives its denoiser no `{missing[0]}`, so that it cannot be trained through.")
    shape, clean_shape = tuple(first[latents].shape[1:]), tuple(clean.shape[1:])
    if shape != clean_shape or first["timestep"].ndim > 1:
        raise DenoiserError(
            f"{name} gives its denoiser latents of shape {shape} and returns latents of shape {clean_shape}; "
            "training through the denoiser needs them equal. Leave soft prompts and attacks that learn out."
        )
    others = {key: value for key, value in first.items() if key not in (latents, *INPUTS)}
    scale = float(scheduler.config.num_train_timesteps)
    return Denoising(
        network, others, scale, latents, None if flow else alphas, prediction or PREDICTIONS[0], first[latents].dtype
    )


def _first_call(pipe: Any, call: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Return the arguments of the denoiser's first call, which is then not made."""
    calls: list[dict[str, Any]] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        names = [name for name in inspect.signature(network.forward).parameters if name not in keywords]
        calls.append({**dict(zip(names, arguments, strict=False)), **keywords})
        raise StopRun

    with ExitStack() as stack:
        before_calls(stack, network, stop)
        PartialRun(pipe, call, any_video=False)(["a"], [0])
    return calls[0] if calls else {}


def pick(count: int, batch: int, generator: torch.Generator) -> Sequence[int]:
    """Return the indices of one batch, each at most once."""
    return [int(index) for index in torch.randperm(count, generator=generator)[:batch]]
