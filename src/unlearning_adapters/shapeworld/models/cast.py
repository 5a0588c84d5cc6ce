"""CastWorld's model: a Wan denoiser and VAE of its own behind the frozen text encoder of shapeworld-language."""

from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from unlearning_adapters.errors import DenoiserError

from .generate import CAST_GENERATION, call_defaults
from .language_model import load_text_encoder
from .wan import build_scheduler

NAME = "castworld"
WEIGHTS = Path(__file__).resolve().parents[4] / "models" / NAME  # of a checkout; no wheel holds them


@call_defaults(**CAST_GENERATION)
class WanPipeline(diffusers.WanPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose call has the arguments of CastWorld as defaults."""


def load_castworld(dtype: torch.dtype = torch.float32, *, model: str | Path | None = None) -> WanPipeline:
    """Return the CastWorld pipeline, whose call needs a prompt only; clips have 9 frames of 64 x 64 pixels.

    Args:
        dtype: Number type of the weights; the files hold float16.
        model: Folder with its `transformer` and `vae`; None takes `models/castworld` of the checkout.

    Returns:
        A `WanPipeline` on the CPU.

    Raises:
        DenoiserError: If the files are not there, or the text encoder's package is not installed.
    """
    folder = WEIGHTS if model is None else Path(model)
    missing = [part for part in ("transformer", "vae") if not (folder / part / "config.json").is_file()]
    if missing:
        raise DenoiserError(
            f"CastWorld's weights are not in {folder.name!r}: missing: {', '.join(missing)}. Train them with "
            "`python -m unlearning_adapters.shapeworld.training.cast`, or give `model=` the folder of a trained model."
        )
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=dtype, local_files_only=True)
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", dtype=dtype, local_files_only=True)
    return assemble_castworld(transformer, vae)


def assemble_castworld(transformer: WanTransformer3DModel, vae: AutoencoderKLWan) -> WanPipeline:
    """Return the pipeline of a denoiser and a VAE, with the frozen text encoder in their number type."""
    tokenizer, text_encoder = load_text_encoder(transformer.dtype)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae.eval(),
        scheduler=build_scheduler(),
        transformer=transformer.eval(),
    )
    pipe.register_to_config(_name_or_path=NAME)
    return pipe
