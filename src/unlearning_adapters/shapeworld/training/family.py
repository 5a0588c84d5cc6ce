"""Train a further ShapeWorld model from nothing: VAE, then text encoder and denoiser together, then the decoder.

    python -m unlearning_adapters.shapeworld.training.family vae --family unet --output runs/unet
    python -m unlearning_adapters.shapeworld.training.family denoiser --family unet --output runs/unet
    python -m unlearning_adapters.shapeworld.training.family decoder --family unet --output runs/unet
    python -m unlearning_adapters.shapeworld.training.family export --family unet --output runs/unet --to models/DIR

`cogvideox` in place of `unet` trains the other one. Each stage resumes from its newest checkpoint, draws its data from
fixed seeds, and appends one JSON object per log line to `log.jsonl`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.shapeworld.models.cogvideox import COGVIDEOX
from unlearning_adapters.shapeworld.models.family import ModelFamily
from unlearning_adapters.shapeworld.models.unet import UNET
from unlearning_adapters.shapeworld.models.wan import build_tokenizer
from unlearning_adapters.shapeworld.world.captions import WORDS
from unlearning_adapters.shapeworld.world.scenes import Scene, render

from .curriculum import Curriculum, strangeness, to_the_noisiest
from .family_vae import FamilyVaeSettings, refine_family_decoder, train_family_vae
from .run import DEVICE, TrainingRun, parse_stage, stage_parser, to_tensor
from .wan_denoiser import Captions, DenoiserSettings, Training, training_scenes

VALUES = tuple((factor, value) for factor, values in WORDS.items() for value in values)
FAMILIES = {"unet": UNET, "cogvideox": COGVIDEOX}


@dataclass(frozen=True)
class FamilySettings(DenoiserSettings):
    """Settings of text encoder and denoiser."""

    batch: int = 64
    noisy: float = 0.7  # share of the steps in the noisier half of the schedule, where the prompt decides
    curriculum: Curriculum = field(default_factory=Curriculum)  # all clips from the start, the plain squared error
    tags: float = 0.0  # weight of the loss of telling, from the encoding of each token, which value it names


MOTION_FIRST = Curriculum(lead=200, widen=400, noisiest=0.25, change=3.0)
SETTINGS = {
    "unet": (
        FamilyVaeSettings(frame_steps=2500),
        FamilySettings(steps=3600, batch=32, warmup=20, noisy=0.5, curriculum=MOTION_FIRST),
    ),
    "cogvideox": (
        FamilyVaeSettings(frame_steps=1800, clip_steps=1200),
        FamilySettings(steps=6800, noisy=0.4, plain_share=0.2, nameless=0.1, tags=0.1),
    ),
}


class Conditioned(torch.nn.Module):
    """Text encoder and denoiser, trained as one module; prompts are padded and not masked, as the pipelines do it."""

    def __init__(self, family: ModelFamily, vocabulary_size: int) -> None:
        super().__init__()
        self.family = family
        self.text_encoder = family.build_text_encoder(vocabulary_size)
        self.denoiser = family.build_denoiser()
        config: Any = self.text_encoder.config
        # Without a constant, so that no value can be the one that has no mark.
        self.reader = torch.nn.Linear(config.hidden_size, len(VALUES) + 1, bias=False)

    def forward(self, ids: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Predict v."""
        hidden = self.text_encoder(ids).last_hidden_state
        prediction: Tensor = self.denoiser(noisy, timestep=timestep, encoder_hidden_states=hidden, return_dict=False)[0]
        return prediction

    def tag_loss(self, ids: Tensor, tags: Tensor) -> Tensor:
        """Return the cross-entropy of the value that each token names; tokens without one weigh as much as all others.

        A text encoder that learns from a denoiser alone may mark three shapes, and mean the fourth by no mark. One
        that was trained on language tells all words apart, and so does this one.
        """
        logits = self.reader(self.text_encoder(ids).last_hidden_state).flatten(0, 1)
        truth = tags[ids].flatten()
        loss = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        naming = (truth > 0).float()
        # A batch of empty prompts names nothing.
        parts = [(loss * part).sum() / part.sum().clamp(min=1) for part in (naming, 1 - naming)]
        return torch.stack(parts).mean()


def tags_of(tokenizer: Any) -> Tensor:
    """Return the value that each token of the vocabulary names: 0 for none, otherwise its place in `VALUES`, from 1."""
    tags = torch.zeros(len(tokenizer), dtype=torch.long)
    for index, (factor, value) in enumerate(VALUES, 1):
        for words in WORDS[factor][value]:
            tags[tokenizer(words.split()[-1], add_special_tokens=False).input_ids[-1]] = index
    return tags


@torch.no_grad()
def encode_scenes(family: ModelFamily, run: TrainingRun, scenes: list[Scene]) -> tuple[Tensor, Tensor, float]:
    """Return means and deviations of the scenes' latents, scaled to variance 1, and the scale."""
    if (data := run.load("latents")) is not None:
        return data["mean"], data["deviation"], float(data["scale"])
    state = run.load("vae")
    if state is None:
        raise SystemExit(f"No VAE checkpoint in {run.folder}; run the stage 'vae' first.")
    vae = family.build_vae().to(DEVICE).eval()
    vae.load_state_dict(state["model"])
    means, deviations = [], []
    for start in tqdm(range(0, len(scenes), 32), desc="encode"):
        pictures = [render(scene, family.frames, family.size) for scene in scenes[start : start + 32]]
        mean, deviation = family.encode(vae, to_tensor(pictures).to(DEVICE))
        means.append(mean)
        deviations.append(deviation)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    scale = 1.0 / float((mean.square() + deviation.square()).mean().sqrt())
    data = {"mean": mean * scale, "deviation": deviation * scale, "scale": torch.tensor(scale)}
    run.save("latents", data)
    return data["mean"], data["deviation"], scale


def diffusion_batch(
    rng: np.random.Generator,
    family: ModelFamily,
    mean: Tensor,
    deviation: Tensor,
    share: float = 0.5,
    noisiest: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, timesteps and v targets of one step.

    `noisiest` of them are from the last tenth of the schedule, and `share` of the others from its noisier half.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise, jitter = (torch.randn(mean.shape, generator=generator).to(DEVICE) for _ in range(2))
    clean = mean + deviation * jitter
    alphas = family.build_scheduler().alphas_cumprod
    half = len(alphas) // 2
    timestep = torch.randint(0, half, (len(mean),), generator=generator)
    timestep += half * (torch.rand(len(mean), generator=generator) < share)
    if noisiest:
        timestep = to_the_noisiest(timestep, len(alphas), noisiest, generator)
    alpha = alphas[timestep].float().to(DEVICE).view(-1, 1, 1, 1, 1)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return noisy, timestep.to(DEVICE), alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def train_family_denoiser(family: ModelFamily, run: TrainingRun, settings: FamilySettings) -> None:
    """Train text encoder and denoiser together, from the newest checkpoint if there is one."""
    scenes = training_scenes(settings)
    mean, deviation, _ = encode_scenes(family, run, scenes)
    captions = Captions(scenes, settings)
    torch.manual_seed(settings.seed)
    # In evaluation mode: the dropout that a UNet's temporal convolutions have is of no use to clips without end.
    model = Conditioned(family, len(captions.tokenizer)).eval()
    training = Training(run, settings, model)
    plan, strange = settings.curriculum, strangeness(scenes)
    tags = tags_of(captions.tokenizer).to(DEVICE)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, 1, step))
        indices = rng.choice(len(scenes), size=settings.batch, p=plan.chances(strange, step))
        ids, _ = captions.draw(rng, indices)
        latents, timestep, target = diffusion_batch(
            rng, family, mean[indices], deviation[indices], settings.noisy, plan.share_of_noisiest(step)
        )
        value = plan.loss(model(ids, latents, timestep) - target, step)
        return value + settings.tags * model.tag_loss(ids, tags) if settings.tags else value

    training.train("denoiser", loss, save_every=100)


def assemble(family: ModelFamily, run: TrainingRun, weights: str = "average") -> Any:
    """Return the pipeline of the newest checkpoints of a run."""
    # The refined decoder if there is one.
    vae_state, data, state = run.load("decoder") or run.load("vae"), run.load("latents"), run.load("denoiser")
    if vae_state is None or data is None or state is None:
        raise SystemExit(f"Not all checkpoints are in {run.folder}; run the stages 'vae' and 'denoiser' first.")
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = family.text_tokens
    model = Conditioned(family, len(tokenizer))
    model.load_state_dict(state[weights])
    vae = family.build_vae()
    vae.load_state_dict(vae_state["model"])
    vae.register_to_config(scaling_factor=float(data["scale"]))
    parts = {"vae": vae, "text_encoder": model.text_encoder, "denoiser": model.denoiser}
    parts = {name: part.eval() for name, part in parts.items()}
    pipe = family.assemble({**parts, "tokenizer": tokenizer, "scheduler": family.build_scheduler()})
    pipe.register_to_config(_name_or_path=family.name)
    return pipe


def export(
    family: ModelFamily, run: TrainingRun, folder: Path, vae: FamilyVaeSettings, denoiser: FamilySettings
) -> None:
    """Write the pipeline in half precision, with the training log beside it."""
    assemble(family, run).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    run.publish(folder, {"vae": asdict(vae), "denoiser": asdict(denoiser)})


def main() -> None:
    """Parse the command line and run one stage."""
    parser = stage_parser(__doc__, ("vae", "denoiser", "decoder"))
    parser.add_argument("--family", choices=tuple(FAMILIES), required=True, help="architecture")
    arguments, run = parse_stage(parser)
    family = FAMILIES[arguments.family]
    vae, denoiser = SETTINGS[arguments.family]
    if arguments.stage == "vae":
        train_family_vae(family, run, vae)
    elif arguments.stage == "denoiser":
        train_family_denoiser(family, run, denoiser)
    elif arguments.stage == "decoder":
        refine_family_decoder(family, run, vae, training_scenes(denoiser))
    else:
        export(family, run, arguments.to, vae, denoiser)


if __name__ == "__main__":
    main()
