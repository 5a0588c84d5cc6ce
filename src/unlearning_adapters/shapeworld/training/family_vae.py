"""VAE of a further ShapeWorld model: frames first, which teach space ten times faster, then clips, which teach time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearning_adapters.shapeworld.models.family import ModelFamily
from unlearning_adapters.shapeworld.world.scenes import Scene, render

from .run import DEVICE, TrainingRun, learning_rate, minimise, to_tensor
from .wan_vae import decoder_to_refine, reconstruction_loss, vae_batch


@dataclass(frozen=True)
class FamilyVaeSettings:
    """Settings of the VAE."""

    frame_steps: int = 3000
    frame_batch: int = 16
    clip_steps: int = 800
    clip_batch: int = 4
    learning_rate: float = 1.5e-3
    clip_rate: float = 8e-4
    warmup: int = 100
    kl: float = 1e-4
    noise: float = 0.05  # added to latents in units of their deviation: the decoder forgives the denoiser's errors
    foreground: float = 4.0
    pairs: float = 0.25
    seed: int = 1


def vae_loss(
    family: ModelFamily, vae: Any, clips: Tensor, settings: FamilyVaeSettings
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted L1 and L2 loss plus the KL term, and what to log."""
    mean, deviation = family.encode(vae, clips)
    spread = (deviation.square() + (settings.noise * mean.detach().std()) ** 2).sqrt()
    decoded = family.decode(vae, mean + spread * torch.randn_like(mean))
    reconstruction, values = reconstruction_loss(decoded, clips, settings.foreground)
    kl = 0.5 * (mean**2 + deviation**2 - 1.0 - 2 * deviation.log()).mean()
    return reconstruction + settings.kl * kl, {**values, "kl": float(kl.detach())}


def train_family_vae(family: ModelFamily, run: TrainingRun, settings: FamilyVaeSettings) -> None:
    """Train the VAE, from the newest checkpoint if there is one."""
    torch.manual_seed(settings.seed)
    vae = family.build_vae().to(DEVICE)
    # Start with little posterior noise: from sigma = 1 the encoder collapses onto the prior.
    last = vae.quant_conv if getattr(vae, "quant_conv", None) is not None else vae.encoder.conv_out.conv
    torch.nn.init.constant_(last.bias[len(last.bias) // 2 :], -4.0)
    steps = settings.frame_steps + (settings.clip_steps if family.clip_vae else 0)

    def rate(step: int) -> float:
        late = step - settings.frame_steps
        if late < 0:
            return learning_rate(step, settings.frame_steps, settings.warmup, settings.learning_rate)
        return learning_rate(late, settings.clip_steps, settings.warmup, settings.clip_rate)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return vae_loss(family, vae, vae_batch(settings, step, family.frames, family.size).to(DEVICE), settings)

    minimise(run, "vae", vae, steps, rate, loss)


def refine_family_decoder(
    family: ModelFamily, run: TrainingRun, settings: FamilyVaeSettings, scenes: list[Scene], steps: int = 400
) -> None:
    """Train the decoder alone on the stored latents of the denoiser's scenes; the latents stay as they are."""
    vae, data = decoder_to_refine(run, family.build_vae, settings.seed)

    def rate(step: int) -> float:
        return learning_rate(step, steps, settings.warmup, settings.clip_rate)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((settings.seed, 3, step))
        indices = rng.integers(len(scenes), size=settings.clip_batch)
        clips = to_tensor([render(scenes[index], family.frames, family.size) for index in indices]).to(DEVICE)
        spread = (data["deviation"][indices].square() + (2 * settings.noise) ** 2).sqrt()
        latents = (data["mean"][indices] + spread * torch.randn_like(spread)) / float(data["scale"])
        return reconstruction_loss(family.decode(vae, latents), clips, settings.foreground)

    minimise(run, "decoder", vae, steps, rate, loss)
