"""VAE of a further ShapeWorld model: frames first, which teach space ten times faster, then clips, which teach time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.shapeworld.models.family import Family
from unlearning_adapters.shapeworld.world.scenes import Scene, render, sample_scene

from .run import DEVICE, Run, learning_rate, to_tensor
from .wan_vae import foreground_weight


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


def batches(family: Family, settings: FamilyVaeSettings, start: int, steps: int) -> Iterator[Tensor]:
    """Yield one batch per step; step k is the same whatever was run before."""
    for step in range(start, steps):
        rng = np.random.default_rng((settings.seed, step))
        frames = step < settings.frame_steps
        count = settings.frame_batch if frames else settings.clip_batch
        scenes = [sample_scene(rng, bodies=1 + int(rng.random() < settings.pairs)) for _ in range(count)]
        clips = [render(scene, family.frames, family.size) for scene in scenes]
        yield to_tensor([clip[[rng.integers(family.frames)]] for clip in clips] if frames else clips)


def vae_loss(family: Family, vae: Any, clips: Tensor, settings: FamilyVaeSettings) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted L1 and L2 loss plus the KL term, and what to log."""
    mean, deviation = family.encode(vae, clips)
    spread = (deviation.square() + (settings.noise * mean.detach().std()) ** 2).sqrt()
    decoded = family.decode(vae, mean + spread * torch.randn_like(mean))
    weight = foreground_weight(clips, settings.foreground)
    error = (decoded - clips).abs()
    reconstruction = (weight * (error + 2 * error**2)).sum() / (weight.sum() * 3)
    kl = 0.5 * (mean**2 + deviation**2 - 1.0 - 2 * deviation.log()).mean()
    values = {"l1": float(error.detach().mean()), "weighted": float(reconstruction.detach()), "kl": float(kl.detach())}
    return reconstruction + settings.kl * kl, values


def train_family_vae(family: Family, run: Run, settings: FamilyVaeSettings) -> None:
    """Train the VAE, from the newest checkpoint if there is one."""
    torch.manual_seed(settings.seed)
    vae = family.build_vae().to(DEVICE)
    # Start with little posterior noise: from sigma = 1 the encoder collapses onto the prior.
    last = vae.quant_conv if getattr(vae, "quant_conv", None) is not None else vae.encoder.conv_out.conv
    torch.nn.init.constant_(last.bias[len(last.bias) // 2 :], -4.0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    start, steps = 0, settings.frame_steps + (settings.clip_steps if family.clip_vae else 0)
    if (state := run.load("vae")) is not None:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    bar = tqdm(batches(family, settings, start, steps), total=steps, initial=start, desc="vae")
    for step, clips in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.frame_steps, settings.warmup, settings.learning_rate)
            if step >= settings.frame_steps:
                late = step - settings.frame_steps
                group["lr"] = learning_rate(late, settings.clip_steps, settings.warmup, settings.clip_rate)
        loss, values = vae_loss(family, vae, clips.to(DEVICE), settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(l1=f"{values['l1']:.4f}", kl=f"{values['kl']:.2f}")
        if step % 50 == 49:
            run.log("vae", step=step + 1, **values)
        if step % 100 == 99 or step + 1 == steps:
            run.save("vae", {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})


def refine_family_decoder(
    family: Family, run: Run, settings: FamilyVaeSettings, scenes: list[Scene], steps: int = 400
) -> None:
    """Train the decoder alone on the stored latents of the denoiser's scenes; the latents stay as they are."""
    state, data = run.load("vae"), run.load("latents")
    if state is None or data is None:
        raise SystemExit(f"No VAE checkpoint or latents in {run.folder}; run the stage 'denoiser' first.")
    torch.manual_seed(settings.seed)
    vae = family.build_vae().to(DEVICE)
    vae.load_state_dict(state["model"])
    vae.requires_grad_(False)
    parameters = list(vae.decoder.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.clip_rate, betas=(0.9, 0.98), weight_decay=0.0)
    bar = tqdm(range(steps), desc="decoder")
    for step in bar:
        rng = np.random.default_rng((settings.seed, 3, step))
        indices = rng.integers(len(scenes), size=settings.clip_batch)
        clips = to_tensor([render(scenes[index], family.frames, family.size) for index in indices]).to(DEVICE)
        spread = (data["deviation"][indices].square() + (2 * settings.noise) ** 2).sqrt()
        latents = (data["mean"][indices] + spread * torch.randn_like(spread)) / float(data["scale"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.warmup, settings.clip_rate)
        error = (family.decode(vae, latents) - clips).abs()
        weight = foreground_weight(clips, settings.foreground)
        loss = (weight * (error + 2 * error**2)).sum() / (weight.sum() * 3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if step % 50 == 49:
            run.log("decoder", step=step + 1, weighted=loss.item(), l1=float(error.detach().mean()))
    run.save("decoder", {"model": vae.state_dict()})
