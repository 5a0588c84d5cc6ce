"""Train the embedded ShapeWorld model from nothing: VAE, then text encoder and denoiser together.

    python -m unlearning_adapters.shapeworld.training.wan vae --output runs/shapeworld
    python -m unlearning_adapters.shapeworld.training.wan denoiser --output runs/shapeworld
    python -m unlearning_adapters.shapeworld.training.wan decoder --output runs/shapeworld
    python -m unlearning_adapters.shapeworld.training.wan export --output runs/shapeworld --to DIR

Each stage resumes from its newest checkpoint, draws its data from fixed seeds, and appends one JSON object per log line
to `log.jsonl`. The stages take about 20, 70 and 10 minutes on two CPU cores; a GPU is used where torch finds one.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from unlearning_adapters.shapeworld.models.wan import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    build_vae,
)

from .run import TrainingRun, parse_stage, stage_parser
from .wan_denoiser import DenoiserSettings, TextConditioned, train_denoiser, training_scenes
from .wan_vae import DecoderSettings, VaeSettings, refine_decoder, train_vae


def assemble(run: TrainingRun, weights: str = "average") -> WanPipeline:
    """Return the pipeline of the newest checkpoints of a run."""
    # The refined decoder if there is one.
    vae_state = run.load("decoder") or run.load("vae")
    statistics, state = run.load("statistics"), run.load("denoiser")
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


def export(run: TrainingRun, folder: Path) -> None:
    """Write the pipeline in half precision, with the training log and settings beside it."""
    pipe = assemble(run).to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    settings = {
        "vae": asdict(VaeSettings()),
        "denoiser": asdict(DenoiserSettings()),
        "decoder": asdict(DecoderSettings()),
    }
    run.publish(folder, settings)


def main() -> None:
    """Parse the command line and run one stage."""
    parser = stage_parser(__doc__, ("vae", "denoiser", "decoder"))
    parser.add_argument("--compile", action="store_true", help="compile the denoiser; needs a C++ compiler")
    arguments, run = parse_stage(parser)
    if arguments.stage == "vae":
        train_vae(run, VaeSettings())
    elif arguments.stage == "denoiser":
        train_denoiser(run, DenoiserSettings(), arguments.compile)
    elif arguments.stage == "decoder":
        refine_decoder(run, DecoderSettings(), training_scenes(DenoiserSettings()))
    else:
        export(run, arguments.to)


if __name__ == "__main__":
    main()
