"""Train the denoiser of ShapeWorld with a frozen pretrained text encoder, from the embedded model's denoiser.

    python -m unlearning_adapters.shapeworld.training.language train --output runs/language
    python -m unlearning_adapters.shapeworld.training.language export --output runs/language --to DIR

Only the projection of the text starts anew. Captions are encoded once, since the text encoder is frozen.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.shapeworld.models.language_model import load_text_encoder
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from unlearning_adapters.shapeworld.models.wan import TRANSFORMER_CONFIG
from unlearning_adapters.shapeworld.world.captions import describe
from unlearning_adapters.shapeworld.world.phrases import TRAINED
from unlearning_adapters.shapeworld.world.scenes import Scene, render

from .run import DEVICE, TrainingRun, parse_stage, stage_parser, to_tensor
from .wan_denoiser import (
    DenoiserSettings,
    PaddedCrossAttention,
    Training,
    flow_batch,
    predict_velocity,
    training_scenes,
)


@dataclass(frozen=True)
class LanguageSettings(DenoiserSettings):
    """Settings of the training with a frozen text encoder."""

    steps: int = 700
    batch: int = 64
    matrix_rate: float = 1.5e-3
    warmup: int = 40
    average: float = 0.995
    scenes: int = 3072
    pair_scenes: int = 384
    captions: int = 8  # per scene
    plain_share: float = 0.2  # of mentions that use the plain word for sure
    seed: int = 4


class TokenConditioned(torch.nn.Module):
    """A denoiser that is trained on encoded prompts."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.processor = PaddedCrossAttention()
        for block in transformer.blocks:
            block.attn2.set_processor(self.processor)

    def forward(self, hidden: Tensor, mask: Tensor, padded: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """Predict the velocity."""
        return predict_velocity(self.transformer, self.processor, hidden, mask, padded, latents, timestep)


def build_denoiser(text_width: int) -> WanTransformer3DModel:
    """Return the embedded model's denoiser with a fresh projection of text of another width."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**{**TRANSFORMER_CONFIG, "text_dim": text_width})
    state = load_shapeworld().transformer.state_dict()
    del state["condition_embedder.text_embedder.linear_1.weight"]
    missing, unexpected = transformer.load_state_dict(state, strict=False)
    if unexpected or len(missing) != 1:
        raise SystemExit(f"The embedded denoiser does not fit: {missing} {unexpected}.")
    return transformer


class EncodedCaptions:
    """Captions of all scenes as the text encoder returns them: the tokens of all captions in one float16 table."""

    def __init__(self, tokens: Tensor, starts: Tensor, captions: int) -> None:
        self.tokens, self.starts, self.captions = tokens, starts, captions

    @classmethod
    @torch.no_grad()
    def encode(
        cls, run: TrainingRun, draw: Callable[[], list[str]], captions: int, bfloat16: bool = False
    ) -> "EncodedCaptions":
        """Encode the captions, so many for each scene in turn, or read them; the last row is the empty prompt."""
        if (data := run.load("captions")) is not None:
            return cls(data["tokens"], data["starts"], captions)
        texts = draw()
        (run.folder / "captions.txt").write_text("\n".join(texts) + "\n")
        texts.append("")
        tokenizer, encoder = load_text_encoder()
        encoder.to(DEVICE)
        rows: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # alike lengths need little padding
        for start in tqdm(range(0, len(order), 64), desc="captions"):
            indices = order[start : start + 64]
            tokens = tokenizer([texts[index] for index in indices], padding=True, return_tensors="pt").to(DEVICE)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bfloat16):
                hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state.half().cpu()
            for index, row, mask in zip(indices, hidden, tokens.attention_mask, strict=True):
                rows[index] = row[: int(mask.sum())].clone()
        starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        run.save("captions", {"tokens": torch.cat(rows), "starts": starts})
        return cls(torch.cat(rows), starts, captions)

    def draw(self, rng: np.random.Generator, scenes: np.ndarray, drop: float) -> tuple[Tensor, Tensor]:
        """Return tokens (batch, longest, width) and mask of one caption of each scene; some are the empty prompt."""
        indices = scenes * self.captions + rng.integers(self.captions, size=len(scenes))
        indices = np.where(rng.random(len(scenes)) < drop, len(self.starts) - 2, indices)
        rows = [self.tokens[self.starts[index] : self.starts[index + 1]].float() for index in indices]
        hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(hidden.shape[1]) < lengths[:, None]).long()
        return hidden.to(DEVICE), mask.to(DEVICE)


@torch.no_grad()
def encode_clips(run: TrainingRun, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Return means and deviations of the scenes' latents, scaled as the pipeline scales them."""
    if (data := run.load("latents")) is not None:
        return data["mean"], data["deviation"]
    vae = load_shapeworld().vae.to(DEVICE)
    centre, scale = (
        torch.tensor(values, device=DEVICE).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    means, deviations = [], []
    for start in tqdm(range(0, len(scenes), 16), desc="clips"):
        clips = to_tensor([render(scene) for scene in scenes[start : start + 16]]).to(DEVICE)
        posterior = vae.encode(clips).latent_dist
        means.append((posterior.mean - centre) / scale)
        deviations.append(posterior.std / scale)
    data = {"mean": torch.cat(means), "deviation": torch.cat(deviations)}
    run.save("latents", data)
    return data["mean"], data["deviation"]


def train_language(run: TrainingRun, settings: LanguageSettings) -> None:
    """Train the denoiser, from the newest checkpoint if there is one."""
    scenes = training_scenes(settings)

    def draw_captions() -> list[str]:
        rng = np.random.default_rng((settings.seed, 2))
        return [
            describe(rng, scene, lexicon=TRAINED, plain_share=settings.plain_share)
            for scene in scenes
            for _ in range(settings.captions)
        ]

    captions = EncodedCaptions.encode(run, draw_captions, settings.captions)
    mean, deviation = encode_clips(run, scenes)
    training = Training(run, settings, TokenConditioned(build_denoiser(captions.tokens.shape[1])))

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, 1, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        hidden, mask = captions.draw(rng, indices, settings.drop_prompt)
        noisy, timestep, target, padded = flow_batch(rng, mean[indices], deviation[indices])
        error: Tensor = training.model(hidden, mask, padded, noisy, timestep) - target
        return error.square().mean()

    training.train("language", loss, save_every=50)


def trained_denoiser(run: TrainingRun, weights: str = "average") -> WanTransformer3DModel:
    """Return the denoiser of the newest checkpoint of a run."""
    state: dict[str, Any] | None = run.load("denoiser")
    if state is None:
        raise SystemExit(f"No checkpoint in {run.folder}; run the stage 'train' first.")
    width = state[weights]["transformer.condition_embedder.text_embedder.linear_1.weight"].shape[1]
    model = TokenConditioned(build_denoiser(width))
    model.load_state_dict(state[weights])
    for block in model.transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    return model.transformer.eval()


def export(run: TrainingRun, settings: LanguageSettings, folder: Path) -> None:
    """Write the denoiser in half precision, with the training log and settings beside it."""
    trained_denoiser(run).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    run.publish(folder, asdict(settings))


def main() -> None:
    """Parse the command line and run one stage."""
    arguments, run = parse_stage(stage_parser(__doc__, ("train",)))
    if arguments.stage == "train":
        train_language(run, LanguageSettings())
    else:
        export(run, LanguageSettings(), arguments.to)


if __name__ == "__main__":
    main()
