"""First stage of training: the VAE, and later its decoder alone on the latents that the denoiser has learned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from unlearning_adapters.shapeworld.models.wan import LATENT_CHANNELS, build_vae
from unlearning_adapters.shapeworld.world.scenes import FRAMES, SIZE, Scene, render, sample_scene

from .run import DEVICE, TrainingRun, learning_rate, minimise, to_tensor


@dataclass(frozen=True)
class VaeSettings:
    """Settings of the first stage: single frames teach space ten times faster than clips, then clips teach time."""

    frame_steps: int = 2000
    frame_batch: int = 16
    clip_steps: int = 1700
    clip_batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 30
    kl: float = 1e-4
    foreground: float = 4.0  # extra weight of the pixels that are not background
    pairs: float = 0.25  # share of scenes with two bodies
    seed: int = 1

    @property
    def steps(self) -> int:
        """Number of steps of both phases."""
        return self.frame_steps + self.clip_steps


def vae_batch(settings: Any, step: int, length: int = FRAMES, size: int = SIZE) -> Tensor:
    """Return the frames, later the clips, of a step; they are the same whatever was run before."""
    rng = np.random.default_rng((settings.seed, step))
    frames = step < settings.frame_steps
    count = settings.frame_batch if frames else settings.clip_batch
    scenes = [sample_scene(rng, bodies=1 + int(rng.random() < settings.pairs)) for _ in range(count)]
    clips = [render(scene, length, size) for scene in scenes]
    return to_tensor([clip[[rng.integers(length)]] for clip in clips] if frames else clips)


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode as `vae.decode` does, but without its clamp to [-1, 1], which has no gradient outside that range."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    frames = []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        frame = hidden[:, :, index : index + 1]
        frames.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    pixels: Tensor = unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size)
    return pixels


def foreground_weight(clips: Tensor, extra: float) -> Tensor:
    """Return 1 for background pixels and 1 + extra for the others; a clip's corner is background."""
    corner = clips[:, :, :, :1, :1]
    differs = (clips - corner).abs().amax(1, keepdim=True) > 0.1
    return 1.0 + extra * differs.float()


def reconstruction_loss(
    decoded: Tensor, clips: Tensor, foreground: float, weight: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted loss of decoded clips, and what to log.

    Without `weight`, pixels that differ from the corner count more. The square of the error gets a VAE off the plateau
    on which only the background is right, its absolute value makes edges sharp.
    """
    weight = foreground_weight(clips, foreground) if weight is None else weight
    error = (decoded - clips).abs()
    loss = (weight * (error + 2 * error**2)).sum() / (weight.sum() * 3)
    return loss, {"l1": float(error.detach().mean()), "weighted": float(loss.detach())}


def vae_loss(
    vae: AutoencoderKLWan, clips: Tensor, settings: Any, weight: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted L1 loss plus the KL term, and what to log; `weight` is that of `reconstruction_loss`."""
    posterior = vae.encode(clips).latent_dist
    decoded = decode_unclamped(vae, posterior.sample())
    reconstruction, values = reconstruction_loss(decoded, clips, settings.foreground, weight)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    others = {"kl": float(kl.detach()), "sigma": float(posterior.std.detach().mean())}
    return reconstruction + settings.kl * kl, {**values, **others}


def train_vae(run: TrainingRun, settings: VaeSettings) -> AutoencoderKLWan:
    """Train the VAE and return it."""
    torch.manual_seed(settings.seed)
    vae = build_vae().to(DEVICE)
    # Start with little posterior noise: from sigma = 1 the encoder collapsed onto the prior.
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -4.0)

    def rate(step: int) -> float:
        late = step - settings.frame_steps
        phase = (step, settings.steps) if late < 0 else (late, settings.clip_steps)
        return learning_rate(*phase, settings.warmup, settings.learning_rate)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return vae_loss(vae, vae_batch(settings, step).to(DEVICE), settings)

    minimise(run, "vae", vae, settings.steps, rate, loss)
    return vae.eval()


@dataclass(frozen=True)
class DecoderSettings:
    """Settings of the last stage, which sharpens the decoder and leaves the latents as the denoiser knows them."""

    steps: int = 800
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 30
    noise: float = 0.08  # of each channel's deviation, so that it forgives what the denoiser gets slightly wrong
    foreground: float = 6.0
    seed: int = 3


def decoder_to_refine(run: TrainingRun, build: Callable[[], Any], seed: int) -> tuple[Any, Any]:
    """Return the VAE of a run, of which the decoder alone can be trained, and the stored latents; torch is seeded."""
    state, data = run.load("vae"), run.load("latents")
    if state is None or data is None:
        raise SystemExit(f"No VAE checkpoint or latents in {run.folder}; run the stage 'denoiser' first.")
    torch.manual_seed(seed)
    vae = build().to(DEVICE)
    vae.load_state_dict(state["model"])
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    return vae, data


def refine_decoder(run: TrainingRun, settings: DecoderSettings, scenes: list[Scene]) -> None:
    """Train the decoder alone on the stored latents of the training scenes."""
    vae, data = decoder_to_refine(run, build_vae, settings.seed)
    vae.post_quant_conv.requires_grad_(True)
    spread = data["mean"].std((0, 2, 3, 4))[:, None, None, None]

    def rate(step: int) -> float:
        return learning_rate(step, settings.steps, settings.warmup, settings.learning_rate)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((settings.seed, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        clips = to_tensor([render(scenes[index]) for index in indices]).to(DEVICE)
        deviation = (data["deviation"][indices] ** 2 + (settings.noise * spread) ** 2).sqrt()
        latents = data["mean"][indices] + deviation * torch.randn_like(deviation)
        return reconstruction_loss(decode_unclamped(vae, latents), clips, settings.foreground)

    minimise(run, "decoder", vae, settings.steps, rate, loss)
