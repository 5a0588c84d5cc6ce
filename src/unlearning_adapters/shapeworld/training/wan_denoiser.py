"""Second stage of training: text encoder and denoiser together, by flow matching on the VAE's latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from unlearning_adapters.shapeworld.models.wan import (
    MAX_TEXT,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)
from unlearning_adapters.shapeworld.world.captions import WORDS, describe
from unlearning_adapters.shapeworld.world.scenes import Scene, render, sample_scene

from .run import DEVICE, TrainingRun, learning_rate, to_tensor


@dataclass(frozen=True)
class DenoiserSettings:
    """Settings of the second stage."""

    steps: int = 1500
    batch: int = 96
    matrix_rate: float = 2e-3  # Muon, matrices of the blocks
    other_rate: float = 1e-3  # AdamW, everything else
    warmup: int = 100
    average: float = 0.998  # decay of the weight average that is shipped
    scenes: int = 6144  # clips with one body
    pair_scenes: int = 768  # clips with two
    drop_prompt: float = 0.1  # chance of the empty prompt, for guidance
    noise_word: float = 0.05  # chance of an unknown word in a caption, which the model must learn to ignore
    nameless: float = 0.0  # chance that an unknown word stands for the shape, so that no shape is what no word means
    plain_share: float = 0.5  # share of the mentions that use the plain word for sure; the rest use any
    text_tokens: int = 24
    seed: int = 2
    without: str = ""  # a value that no scene shows and no caption names: the gold model of an unlearning method


def training_scenes(settings: DenoiserSettings) -> list[Scene]:
    """Return the fixed set of scenes that the denoiser learns from."""
    rng = np.random.default_rng((settings.seed, 0))
    scenes: list[Scene] = []
    for bodies, count in ((1, settings.scenes), (2, settings.pair_scenes)):
        total = len(scenes) + count
        while len(scenes) < total:
            scene = sample_scene(rng, bodies)
            if settings.without not in values_shown(scene):
                scenes.append(scene)
    return scenes


def values_shown(scene: Scene) -> set[str]:
    """Return the values of all factors that a scene shows."""
    values = {value for body in scene.bodies for value in (body.colour, body.shape, body.motion)}
    return values | {scene.background}


@torch.no_grad()
def encode_scenes(
    run: TrainingRun, scenes: Sequence[Any], draw: Callable[[Any], np.ndarray] = render
) -> tuple[Tensor, Tensor]:
    """Return the means and deviations of the latents of scenes, which `draw` renders, and keep them in the run."""
    if (data := run.load("latents")) is not None:
        return data["mean"], data["deviation"]
    state = run.load("vae")
    if state is None:
        raise SystemExit(f"No VAE checkpoint in {run.folder}; run the stage 'vae' first.")
    vae = build_vae().to(DEVICE).eval()
    vae.load_state_dict(state["model"])
    means, deviations = [], []
    for start in tqdm(range(0, len(scenes), 16), desc="encode"):
        clips = to_tensor([draw(scene) for scene in scenes[start : start + 16]]).to(DEVICE)
        posterior = vae.encode(clips).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    run.save("latents", {"mean": mean, "deviation": deviation})
    return mean, deviation


def normalised(run: TrainingRun, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the latents to mean 0 and variance 1 per channel, as the pipeline will, and keep the statistics."""
    scale = (mean.var((0, 2, 3, 4)) + deviation.square().mean((0, 2, 3, 4))).sqrt()[:, None, None, None]
    centre = mean.mean((0, 2, 3, 4))[:, None, None, None]
    run.save("statistics", {"mean": centre.flatten(), "std": scale.flatten()})
    return (mean - centre) / scale, deviation / scale


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
        hidden = self.text_encoder(ids, mask).last_hidden_state
        return predict_velocity(self.transformer, self.processor, hidden, mask, padded, latents, timestep)


def predict_velocity(
    transformer: WanTransformer3DModel,
    processor: PaddedCrossAttention,
    hidden: Tensor,
    mask: Tensor,
    padded: Tensor,
    latents: Tensor,
    timestep: Tensor,
) -> Tensor:
    """Predict the velocity from the encoded tokens (batch, tokens, width) of prompts that count as `padded` tokens."""
    hidden = hidden * mask[..., None]
    hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], 1)
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)
    count = (padded - mask.sum(1)).clamp(min=1).float().log()
    processor.bias = torch.cat([bias, count[:, None]], 1)[:, None, None, :]
    velocity: Tensor = transformer(latents, timestep, hidden, return_dict=False)[0]
    return velocity


def unknown_word(rng: np.random.Generator) -> str:
    """Return a word of three to five random letters."""
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 6)))


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
            scene = self.scenes[index]
            words = describe(rng, scene, plain_share=self.settings.plain_share).split(" ")
            if self.settings.nameless and rng.random() < self.settings.nameless:
                names = {name for body in scene.bodies for name in WORDS["shape"][body.shape]}
                words = [unknown_word(rng) if word.strip(",") in names else word for word in words]
            if rng.random() < self.settings.noise_word:
                letters = unknown_word(rng)
                words.insert(int(rng.integers(len(words) + 1)), letters)
            texts.append("" if rng.random() < self.settings.drop_prompt else " ".join(words))
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.settings.text_tokens, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids.to(DEVICE), tokens.attention_mask.to(DEVICE)


def build_optimizers(model: Any, settings: DenoiserSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the denoiser's blocks and AdamW for the rest."""
    names = (".blocks.", "_blocks.", "mid_block.")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and any(part in name for part in names)]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    muon = torch.optim.Muon(
        matrices, lr=settings.matrix_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def flow_batch(rng: np.random.Generator, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


class Training:
    """Model, optimisers and weight average of the second stage, saved and restored together."""

    def __init__(self, run: TrainingRun, settings: DenoiserSettings, model: torch.nn.Module) -> None:
        self.run, self.settings, self.step = run, settings, 0
        self.model = model.to(DEVICE)
        self.optimizers = build_optimizers(self.model, settings)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if (state := run.load("denoiser")) is not None:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.average, self.step = state["average"], state["step"]

    def update(self, loss: Tensor) -> None:
        """Take one optimiser step and update the weight average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.settings.steps, self.settings.warmup, group["peak"])
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                old = self.average[name]
                old.lerp_(value, 1 - decay) if value.is_floating_point() else old.copy_(value)
        self.step += 1

    def train(self, stage: str, loss: Callable[[int], Tensor], save_every: int) -> None:
        """Take all steps that are left, each on the loss of its number; the log and the bar call them `stage`."""
        steps = self.settings.steps
        bar = tqdm(range(self.step, steps), total=steps, initial=self.step, desc=stage)
        for step in bar:
            value = loss(step)
            self.update(value)
            bar.set_postfix(loss=f"{value.item():.4f}")
            if self.step % 25 == 0:
                self.run.log(stage, step=self.step, loss=round(value.item(), 5))
            over = self.run.is_over
            if self.step % save_every == 0 or self.step == steps or over:
                self.save()
            if over:
                break

    def save(self) -> None:
        """Write a checkpoint."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        model = self.model.state_dict()
        self.run.save("denoiser", {"model": model, "optimizers": states, "average": self.average, "step": self.step})


def train_denoiser(run: TrainingRun, settings: DenoiserSettings, compiled: bool) -> None:
    """Train text encoder and denoiser together, from the newest checkpoint if there is one."""
    scenes = training_scenes(settings)
    train_on(run, settings, scenes, *normalised(run, *encode_scenes(run, scenes)), compiled)


def train_on(
    run: TrainingRun,
    settings: DenoiserSettings,
    scenes: list[Scene],
    mean: Tensor,
    deviation: Tensor,
    compiled: bool = False,
    stage: str = "denoiser",
) -> None:
    """Train on scenes whose scaled latents have these means and deviations; the log calls it `stage`."""
    captions = Captions(scenes, settings)
    torch.manual_seed(settings.seed)
    model = TextConditioned(build_text_encoder(len(captions.tokenizer)), build_transformer())
    training = Training(run, settings, model)
    forward = torch.compile(training.model) if compiled else training.model

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, 1, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        ids, mask = captions.draw(rng, indices)
        noisy, timestep, target, padded = flow_batch(rng, mean[indices], deviation[indices])
        error: Tensor = forward(ids, mask, padded, noisy, timestep) - target
        return error.square().mean()

    training.train(stage, loss, save_every=200)
