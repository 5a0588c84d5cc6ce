"""Train the embedded ShapeWorld model from nothing: VAE, then text encoder and denoiser together.

    python -m unlearning_adapters.shapeworld.train vae --output runs/shapeworld
    python -m unlearning_adapters.shapeworld.train denoiser --output runs/shapeworld
    python -m unlearning_adapters.shapeworld.train export --output runs/shapeworld --to DIR

Each stage resumes from its newest checkpoint, draws its data from fixed seeds, and appends one JSON object per log line
to `log.jsonl`. The first stage takes about 15 minutes and the second about 90 on two CPU cores; a GPU is used where
torch finds one.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from .architecture import (
    LATENT_CHANNELS,
    MAX_TEXT,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)
from .captions import describe
from .scenes import FRAMES, Scene, render, sample_scene

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class VaeSettings:
    """Settings of the first stage: single frames teach it space ten times faster than clips, then clips teach it time."""

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


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a linear warm-up and a cosine decay to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def to_tensor(clips: list[np.ndarray]) -> Tensor:
    """Return uint8 clips (frames, height, width, 3) as a batch (clips, 3, frames, height, width) in [-1, 1]."""
    batch = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)
    return batch.float().div_(127.5).sub_(1.0)


class Run:
    """A folder that holds the log and the checkpoints of one training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.time()

    def log(self, stage: str, **values: float | int | str) -> None:
        """Append one line to the log."""
        row = {"stage": stage, "seconds": round(time.time() - self.started, 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint so that a killed run leaves the old or the new one, never half of one."""
        path = self.folder / f"{name}.pt"
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a checkpoint of this run; None if there is none."""
        path = self.folder / f"{name}.pt"
        return torch.load(path, map_location=DEVICE, weights_only=True) if path.exists() else None


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
    return unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size)


def vae_loss(vae: AutoencoderKLWan, clips: Tensor, settings: VaeSettings) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted L1 loss plus the KL term, and what to log."""
    posterior = vae.encode(clips).latent_dist
    decoded = decode_unclamped(vae, posterior.sample())
    corner = clips[:, :, :, :1, :1]
    weight = 1.0 + settings.foreground * ((clips - corner).abs().amax(1, keepdim=True) > 0.1)
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
class DenoiserSettings:
    """Settings of the second stage."""

    steps: int = 5000
    batch: int = 96
    matrix_rate: float = 2e-3  # Muon, matrices of the blocks
    other_rate: float = 1e-3  # AdamW, everything else
    warmup: int = 100
    average: float = 0.998  # decay of the weight average that is shipped
    scenes: int = 6144  # clips with one body
    pair_scenes: int = 768  # clips with two
    drop_prompt: float = 0.1  # chance of the empty prompt, for guidance
    noise_word: float = 0.05  # chance of an unknown word in a caption, which the model must learn to ignore
    text_tokens: int = 24
    seed: int = 2


@torch.no_grad()
def encode_scenes(vae: AutoencoderKLWan, settings: DenoiserSettings) -> tuple[list[Scene], Tensor, Tensor]:
    """Draw the training scenes and return them with the means and deviations of their posteriors."""
    rng = np.random.default_rng((settings.seed, 0))
    scenes = [sample_scene(rng) for _ in range(settings.scenes)]
    scenes += [sample_scene(rng, bodies=2) for _ in range(settings.pair_scenes)]
    means, deviations = [], []
    for start in tqdm(range(0, len(scenes), 16), desc="encode"):
        clips = to_tensor([render(scene) for scene in scenes[start : start + 16]]).to(DEVICE)
        posterior = vae.encode(clips).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    return scenes, torch.cat(means), torch.cat(deviations)


class PaddedCrossAttention(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention that counts one padding token as many.

    WanPipeline pads prompts with zero vectors and does not mask them. All padding tokens have the same key and value,
    so n of them act as one with `log n` added to its logit: training sees prompts of any padded length at the price
    of one token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias: Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        """Run Wan's own processor with the bias as its mask."""
        del attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)


class TextConditioned(torch.nn.Module):
    """Text encoder and denoiser, trained as one module."""

    def __init__(self, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer
        self.processor = PaddedCrossAttention()
        for block in transformer.blocks:
            block.attn2.set_processor(self.processor)

    def forward(self, ids: Tensor, mask: Tensor, padded: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """Predict the velocity; `padded` is the length (batch,) that each prompt counts as."""
        hidden = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], 1)
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)
        count = (padded - mask.sum(1)).clamp(min=1).float().log()
        self.processor.bias = torch.cat([bias, count[:, None]], 1)[:, None, None, :]
        return self.transformer(latents, timestep, hidden, return_dict=False)[0]


class Captions:
    """Draws the captions of one training step and their token ids."""

    def __init__(self, scenes: list[Scene], settings: DenoiserSettings) -> None:
        self.scenes = scenes
        self.settings = settings
        self.tokenizer: PreTrainedTokenizerBase = build_tokenizer()

    def draw(self, rng: np.random.Generator, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return token ids and mask, both (batch, text_tokens), of fresh captions of the scenes."""
        texts = []
        for index in indices:
            words = describe(rng, self.scenes[index]).split(" ")
            if rng.random() < self.settings.noise_word:
                letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 6))
                words.insert(int(rng.integers(len(words) + 1)), "".join(letters))
            texts.append("" if rng.random() < self.settings.drop_prompt else " ".join(words))
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.settings.text_tokens, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids.to(DEVICE), tokens.attention_mask.to(DEVICE)


def build_optimizers(model: TextConditioned, settings: DenoiserSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the denoiser's blocks and AdamW for all else."""
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices, lr=settings.matrix_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def flow_batch(
    rng: np.random.Generator, mean: Tensor, deviation: Tensor, settings: DenoiserSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return noisy latents, timesteps, velocity targets and padded lengths of one flow-matching step."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise, jitter = (torch.randn(mean.shape, generator=generator).to(DEVICE) for _ in range(2))
    clean = mean + deviation * jitter
    # Logit-normal around the noise level at which shape and motion are decided, plus a uniform tenth for the ends.
    level = torch.sigmoid(torch.randn(len(mean), generator=generator) + 0.3)
    uniform = torch.rand(len(mean), generator=generator)
    level = torch.where(torch.rand(len(mean), generator=generator) < 0.1, uniform, level).to(DEVICE)
    spread = level.view(-1, 1, 1, 1, 1)
    padded = torch.exp(torch.empty(len(mean)).uniform_(np.log(32), np.log(MAX_TEXT), generator=generator)).round()
    return (1 - spread) * clean + spread * noise, level * 1000, noise - clean, padded.to(DEVICE)


def train_denoiser(run: Run, settings: DenoiserSettings, compiled: bool) -> None:
    """Train text encoder and denoiser together."""
    state = run.load("vae")
    if state is None:
        raise SystemExit(f"No VAE checkpoint in {run.folder}; run the stage 'vae' first.")
    vae = build_vae().to(DEVICE).eval()
    vae.load_state_dict(state["model"])
    data = run.load("latents")
    scenes, mean, deviation = encode_scenes(vae, settings) if data is None else (None, data["mean"], data["deviation"])
    if scenes is None:
        rng = np.random.default_rng((settings.seed, 0))
        scenes = [sample_scene(rng) for _ in range(settings.scenes)]
        scenes += [sample_scene(rng, bodies=2) for _ in range(settings.pair_scenes)]
    else:
        run.save("latents", {"mean": mean, "deviation": deviation})
    scale = (mean.var((0, 2, 3, 4)) + deviation.square().mean((0, 2, 3, 4))).sqrt()[:, None, None, None]
    centre = mean.mean((0, 2, 3, 4))[:, None, None, None]
    mean, deviation = (mean - centre) / scale, deviation / scale
    run.save("statistics", {"mean": centre.flatten(), "std": scale.flatten()})

    torch.manual_seed(settings.seed)
    captions = Captions(scenes, settings)
    model = TextConditioned(build_text_encoder(len(captions.tokenizer)), build_transformer()).to(DEVICE)
    optimizers = build_optimizers(model, settings)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    start = 0
    if (state := run.load("denoiser")) is not None:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, start = state["average"], state["step"]
    forward = torch.compile(model) if compiled else model
    bar = tqdm(range(start, settings.steps), total=settings.steps, initial=start, desc="denoiser")
    for step in bar:
        rng = np.random.default_rng((settings.seed, 1, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        ids, mask = captions.draw(rng, indices)
        noisy, timestep, target, padded = flow_batch(rng, mean[indices], deviation[indices], settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings.steps, settings.warmup, group["peak"])
        loss = (forward(ids, mask, padded, noisy, timestep) - target).square().mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if step % 25 == 24:
            run.log("denoiser", step=step + 1, loss=round(loss.item(), 5))
        if step % 200 == 199 or step + 1 == settings.steps:
            saved = [optimizer.state_dict() for optimizer in optimizers]
            run.save(
                "denoiser", {"model": model.state_dict(), "optimizers": saved, "average": average, "step": step + 1}
            )


def assemble(run: Run, weights: str = "average") -> WanPipeline:
    """Return the pipeline of the newest checkpoints of a run."""
    vae_state, statistics, state = run.load("vae"), run.load("statistics"), run.load("denoiser")
    if vae_state is None or statistics is None or state is None:
        raise SystemExit(f"Not all checkpoints are in {run.folder}; run the stages 'vae' and 'denoiser' first.")
    vae = build_vae(statistics["mean"].tolist(), statistics["std"].tolist())
    vae.load_state_dict(vae_state["model"])
    tokenizer = build_tokenizer()
    text_encoder, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    TextConditioned(text_encoder, transformer).load_state_dict(state[weights])
    for block in transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    parts = {"vae": vae.eval(), "text_encoder": text_encoder.eval(), "transformer": transformer.eval()}
    return WanPipeline(**parts, tokenizer=tokenizer, scheduler=build_scheduler())


def export(run: Run, folder: Path) -> None:
    """Write the pipeline in half precision, with the training log and settings beside it."""
    pipe = assemble(run).to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    settings = {"vae": asdict(VaeSettings()), "denoiser": asdict(DenoiserSettings())}
    (folder / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "training_log.jsonl").write_text((run.folder / "log.jsonl").read_text())


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=("vae", "denoiser", "export"))
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--to", type=Path, help="folder of the exported pipeline")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="compile the denoiser; needs a C++ compiler")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments.output)
    if arguments.stage == "vae":
        train_vae(run, VaeSettings())
    elif arguments.stage == "denoiser":
        train_denoiser(run, DenoiserSettings(), arguments.compile)
    elif arguments.to is None:
        parser.error("the stage 'export' needs --to DIR")
    else:
        export(run, arguments.to)


if __name__ == "__main__":
    main()
