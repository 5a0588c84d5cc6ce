"""Train CastWorld from the embedded models: its VAE, then the denoiser behind the frozen text encoder.

    python -m unlearning_adapters.shapeworld.training.cast vae --output runs/cast
    python -m unlearning_adapters.shapeworld.training.cast judge --output runs/cast --count 640
    python -m unlearning_adapters.shapeworld.training.cast train --output runs/cast
    python -m unlearning_adapters.shapeworld.training.cast gate --output runs/cast --count 400
    python -m unlearning_adapters.shapeworld.training.cast export --output runs/cast --to models/castworld

Each stage goes on from the newest checkpoint of the run, and stops after `--minutes` with one. `--resume DIR` starts a
run on another machine from an exported model, which holds what the optimisers need. `--start DIR` trains the weights of
an exported model further, with a schedule of its own (`--steps`, `--rate`) and other clips (`--seed`). Clips and
captions are drawn from fixed seeds, and are encoded once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearning_adapters.shapeworld.cast.captions import describe
from unlearning_adapters.shapeworld.cast.roster import roster
from unlearning_adapters.shapeworld.cast.scenes import (
    LATENT_FRAMES,
    CastScene,
    render,
    sample_scene,
    without_foreground,
)
from unlearning_adapters.shapeworld.models.cast import assemble_castworld
from unlearning_adapters.shapeworld.models.language_model import load_shapeworld_language
from unlearning_adapters.shapeworld.world.scenes import SIZE

from .cast_checkpoint import read_checkpoint, start_at, write_checkpoint
from .cast_gate import gate, judge_accuracy
from .cast_vae import CastVaeSettings, differs, train_cast_vae, trained_cast_vae
from .language import EncodedCaptions, TokenConditioned
from .run import DEVICE, TrainingRun, parse_stage, stage_parser
from .wan_denoiser import DenoiserSettings, Training, encode_scenes, flow_batch, normalised

CELL = 16  # pixels in each direction that a latent stands for


@dataclass(frozen=True)
class CastSettings(DenoiserSettings):
    """Settings of the denoiser's training: about an hour of steps on two quiet cores."""

    steps: int = 9000
    batch: int = 64
    matrix_rate: float = 1.5e-3
    warmup: int = 40
    average: float = 0.998
    scenes: int = 7680  # 60 of each character
    captions: int = 3  # per scene
    foreground: float = 3.0  # extra weight of the place that shows a character, things or an object most often
    seed: int = 12


def cast_scenes(settings: CastSettings) -> list[CastScene]:
    """Return the fixed set of scenes that the denoiser learns from; each character has as many as any other."""
    rng = np.random.default_rng((settings.seed, 0))
    return [sample_scene(rng, character=index % len(roster())) for index in range(settings.scenes)]


def foreground_shares(scenes: Sequence[CastScene]) -> Tensor:
    """Return the share of foreground pixels in each latent, of shape (scenes, 1, latent frames, height, width)."""
    shares = []
    for scene in scenes:
        over = differs(render(scene), without_foreground(scene)).astype(np.float32)
        cells = over.reshape(len(over), SIZE // CELL, CELL, SIZE // CELL, CELL).mean((2, 4))
        starts = np.cumsum([0, *LATENT_FRAMES[:-1]])
        shares.append(np.add.reduceat(cells, starts) / np.array(LATENT_FRAMES)[:, None, None])
    return torch.from_numpy(np.stack(shares)).float()[:, None]


def place_weights(scenes: Sequence[CastScene], extra: float) -> Tensor:
    """Return the loss weight of each place, `1 + extra * share / largest share`: (1, latent frames, height, width).

    The share is that of foreground over all scenes, so that small things count as much as their setting. It is the
    same for each clip: a weight that knew what its own clip shows would move the minimum of the loss towards that.
    """
    share = foreground_shares(scenes).mean(0)
    return 1.0 + extra * share / share.max()


def start_model() -> TokenConditioned:
    """Return the denoiser of shapeworld-language, which training starts from."""
    transformer: WanTransformer3DModel = load_shapeworld_language().transformer
    return TokenConditioned(transformer.requires_grad_(True))


def train_cast(run: TrainingRun, settings: CastSettings) -> None:
    """Train the denoiser, from the newest checkpoint if there is one."""
    run.check_data({name: getattr(settings, name) for name in ("seed", "scenes", "captions")})
    scenes = cast_scenes(settings)

    def draw_captions() -> list[str]:
        rng = np.random.default_rng((settings.seed, 2))
        return [describe(rng, scene) for scene in scenes for _ in range(settings.captions)]

    captions = EncodedCaptions.encode(run, draw_captions, settings.captions, bfloat16=True)
    mean, deviation = normalised(run, *encode_scenes(run, scenes, render))
    weight = place_weights(scenes, settings.foreground).to(DEVICE)
    training = Training(run, settings, start_model())

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((settings.seed, 1, step))
        indices = rng.integers(len(scenes), size=settings.batch)
        hidden, mask = captions.draw(rng, indices, settings.drop_prompt)
        noisy, timestep, target, padded = flow_batch(rng, mean[indices], deviation[indices])
        # On a CPU, bfloat16 products are fast and the backward of its fused attention is not.
        with torch.autocast(DEVICE.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            prediction: Tensor = training.model(hidden, mask, padded, noisy, timestep)
        return (weight * (prediction.float() - target).square()).mean()

    training.train("cast", loss, save_every=200)


def trained_pipeline(run: TrainingRun) -> Any:
    """Return the pipeline of the newest checkpoints of a run."""
    state = run.load("denoiser")
    if state is None:
        raise SystemExit(f"No checkpoint in {run.folder}; run the stage 'train' first.")
    model = start_model()
    model.load_state_dict(state["average"])
    for block in model.transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    model.transformer.register_to_config(_name_or_path="")  # else the folder that training started from
    return assemble_castworld(model.transformer.requires_grad_(False), trained_cast_vae(run))


def export(run: TrainingRun, folder: Path, settings: CastSettings) -> None:
    """Write VAE and denoiser in half precision, the log, and what is needed to resume a training that is not over."""
    pipe, state = trained_pipeline(run).to(torch.float16), run.load("denoiser")
    assert state is not None  # `trained_pipeline` has read it
    for part in ("transformer", "vae", "scheduler"):
        getattr(pipe, part).save_pretrained(folder / part)
    if state["step"] < settings.steps:
        write_checkpoint(folder / "checkpoint", state)
    run.publish(folder, {"vae": asdict(CastVaeSettings()), "denoiser": asdict(settings)})


def asked_settings(steps: int | None, rate: float | None, seed: int | None) -> CastSettings:
    """Return the default settings with those that are asked for."""
    default = CastSettings()
    asked: dict[str, Any] = {"steps": steps, "seed": seed, "matrix_rate": rate}
    if rate is not None:
        asked["other_rate"] = round(rate * default.other_rate / default.matrix_rate, 9)
    return replace(default, **{name: value for name, value in asked.items() if value is not None})


def main() -> None:
    """Parse the command line and run one stage."""
    parser = stage_parser(__doc__, ("vae", "judge", "train", "gate"))
    parser.add_argument("--resume", type=Path, metavar="DIR", help="exported model that a new run goes on from")
    parser.add_argument("--start", type=Path, metavar="DIR", help="exported model whose weights a new run starts from")
    parser.add_argument("--steps", type=int, help=f"of the denoiser (default {CastSettings.steps})")
    parser.add_argument("--rate", type=float, help=f"of Muon, AdamW's in proportion ({CastSettings.matrix_rate})")
    parser.add_argument("--seed", type=int, help=f"of clips, captions and noise (default {CastSettings.seed})")
    parser.add_argument("--count", type=int, default=400, help="held-out prompts of each kind in the gate")
    parser.add_argument("--guidance", type=float, help="guidance scale of the gate; default that of the pipeline")
    arguments, run = parse_stage(parser)
    settings = asked_settings(arguments.steps, arguments.rate, arguments.seed)
    if settings.steps < 1 or settings.matrix_rate <= 0 or settings.seed < 0:
        parser.error("expected --steps of 1 or more, a positive --rate, and a --seed of 0 or more")
    if arguments.resume is not None:
        read_checkpoint(arguments.resume, run, start_model(), settings)
    if arguments.start is not None:
        start_at(arguments.start, run, start_model(), settings)
    if arguments.stage == "vae":
        train_cast_vae(run, CastVaeSettings())
    elif arguments.stage == "judge":
        print(json.dumps(judge_accuracy(trained_cast_vae(run), arguments.count), indent=2))
    elif arguments.stage == "train":
        train_cast(run, settings)
    elif arguments.stage == "gate":
        rows = gate(trained_pipeline(run), arguments.count, arguments.guidance)
        text = json.dumps(rows, indent=2)
        (run.folder / "gate.json").write_text(text + "\n")
        print(text)
    else:
        export(run, arguments.to, settings)


if __name__ == "__main__":
    main()
