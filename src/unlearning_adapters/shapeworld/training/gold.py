"""Train a gold model: the embedded model retrained from nothing on a world without one value.

    python -m unlearning_adapters.shapeworld.training.gold train --without red --output runs/gold
    python -m unlearning_adapters.shapeworld.training.gold export --without red --output runs/gold --to models/gold

It is what unlearning should come to: no clip of its training shows the value, and no caption names it. Text encoder and
denoiser are new; the VAE is that of the embedded model, which draws whatever its latents say. The training resumes from
its newest checkpoint, and takes about 15 minutes on two CPU cores.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from unlearning_adapters.shapeworld.models.load import load_shapeworld

from .language import encode_clips
from .run import TrainingRun, parse_stage, stage_parser
from .wan_denoiser import DenoiserSettings, TextConditioned, train_on, training_scenes


def gold_settings(value: str) -> DenoiserSettings:
    """Return the settings of a model that never saw a value: the embedded one's, with fewer, smaller steps."""
    return DenoiserSettings(steps=900, batch=64, without=value)


def train_gold(run: TrainingRun, settings: DenoiserSettings) -> None:
    """Train text encoder and denoiser together, from the newest checkpoint if there is one."""
    scenes = training_scenes(settings)
    train_on(run, settings, scenes, *encode_clips(run, scenes), stage="gold")


def assemble_gold(run: TrainingRun, value: str, weights: str = "average") -> WanPipeline:
    """Return the pipeline of the newest checkpoint of a run."""
    state = run.load("denoiser")
    if state is None:
        raise SystemExit(f"No checkpoint in {run.folder}; run the stage 'train' first.")
    pipe = load_shapeworld()
    model = TextConditioned(pipe.text_encoder, pipe.transformer)
    model.load_state_dict(state[weights])
    for block in pipe.transformer.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    for part in (pipe.vae, pipe.transformer):
        part.register_to_config(_name_or_path=pipe.name_or_path)  # else the folder of the embedded model
    pipe.register_to_config(_name_or_path=f"shapeworld-without-{value}")
    return pipe


def export(run: TrainingRun, settings: DenoiserSettings, folder: Path) -> None:
    """Write the pipeline in half precision, with the training log and settings beside it."""
    assemble_gold(run, settings.without).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    run.publish(folder, asdict(settings))


def main() -> None:
    """Parse the command line and run one stage."""
    parser = stage_parser(__doc__, ("train",))
    parser.add_argument("--without", required=True, metavar="VALUE", help="the value that the model never sees")
    arguments, run = parse_stage(parser)
    settings = gold_settings(arguments.without)
    if arguments.stage == "train":
        train_gold(run, settings)
    else:
        export(run, settings, arguments.to)


if __name__ == "__main__":
    main()
