"""First stage of training: the VAE, and later its decoder alone on the latents that the denoiser has learned."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.shapeworld.models.wan import LATENT_CHANNELS, build_vae
from unlearning_adapters.shapeworld.world.scenes import FRAMES, Scene, render, sample_scene

from .run import DEVICE, Run, learning_rate, to_tensor


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


def vae_batches(settings: VaeSettings, start: int) -> Iterator[Tensor]:
    """Yield one batch of frames, later of clips, per step; step k is the same whatever was run before."""
    for step in range(start, settings.steps):
        rng = np.random.default_rng((settings.seed, step))
        frames = step < settings.frame_steps
        count = settings.frame_batch if frames else settings.clip_batch
        scenes = [sample_scene(rng, bodies=1 + int(rng.random() < settings.pairs)) for _ in range(count)]
        clips = [render(scene) for scene in scenes]
        yield to_tensor([clip[[rng.integers(FRAMES)]] for clip in clips] if frames else clips)


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


def vae_loss(vae: AutoencoderKLWan, clips: Tensor, settings: VaeSettings) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted L1 loss plus the KL term, and what to log."""
    posterior = vae.encode(clips).latent_dist
    decoded = decode_unclamped(vae, posterior.sample())
    weight = foreground_weight(clips, settings.foreground)
    error = (decoded - clips).abs()
    # The square gets it off the plateau on which only the background is right, the absolute value makes edges sharp.
    reconstruction = (weight * (error + 2 * error**2)).sum() / (weight.sum() * 3)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    return reconstruction + settings.kl * kl, {
        "l1": float(error.detach().mean()),
        "weighted": float(reconstruction.detach()),
        "kl": float(kl.detach()),
        "sigma": float(posterior.std.detach().mean()),
    }


def train_vae(run: Run, settings: VaeSettings) -> AutoencoderKLWan:
    """Train the VAE and return it."""
    torch.manual_seed(settings.seed)
    vae = build_vae().to(DEVICE)
    # Start with little posterior noise: from sigma = 1 the encoder collapsed onto the prior.
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -4.0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    start = 0
    if (state := run.load("vae")) is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    bar = tqdm(vae_batches(settings, start), total=settings.steps, initial=start, desc="vae")
    for step, clips in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.learning_rate)
            if step >= settings.frame_steps:
                group["lr"] = learning_rate(
                    step - settings.frame_steps, settings.clip_steps, settings.warmup, settings.learning_rate
                )
        loss, values = vae_loss(vae, clips.to(DEVICE), settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(l1=f"{values['l1']:.4f}", kl=f"{values['kl']:.2f}")
        if step % 50 == 49:
            run.log("vae", step=step + 1, **values)
        if step % 100 == 99 or step + 1 == settings.steps:
            run.save("vae", {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
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


def refine_decoder(run: Run, settings: DecoderSettings, scenes: list[Scene]) -> None:
    """Train the decoder alone on the stored latents of the training scenes."""
    state, data = run.load("vae"), run.load("latents")
    if state is None or data is None:
        raise SystemExit(f"No VAE checkpoint or latents in {run.folder}; run the stage 'denoiser' first.")
    torch.manual_seed(settings.seed)
    vae = build_vae().to(DEVICE)
    vae.load_state_dict(state["model"])
    vae.requires_grad_(False)
    parameters = [
        *vae.decoder.requires_grad_(True).parameters(),
        *vae.post_quant_conv.requires_grad_(True).parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    start = 0
    if (saved := run.load("decoder")) is not None:
        vae.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    spread = data["mean"].std((0, 2, 3, 4))[:, None, None, None]
    bar = tqdm(range(start, settings.steps), total=settings.steps, initial=start, desc="decoder")
    for step in bar:
        rng = np.random.default_rng((settings.seed, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        clips = to_tensor([render(scenes[index]) for index in indices]).to(DEVICE)
        deviation = (data["deviation"][indices] ** 2 + (settings.noise * spread) ** 2).sqrt()
        latents = data["mean"][indices] + deviation * torch.randn_like(deviation)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.learning_rate)
        error = (decode_unclamped(vae, latents) - clips).abs()
        weight = foreground_weight(clips, settings.foreground)
        loss = (weight * (error + 2 * error**2)).sum() / (weight.sum() * 3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if step % 50 == 49:
            run.log("decoder", step=step + 1, weighted=loss.item(), l1=float(error.detach().mean()))
        if step % 100 == 99 or step + 1 == settings.steps:
            run.save("decoder", {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
