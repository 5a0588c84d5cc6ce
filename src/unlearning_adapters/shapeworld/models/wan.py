"""The parts of the ShapeWorld model, all of them diffusers' and transformers' own classes, only small."""

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from unlearning_adapters.shapeworld.world.captions import vocabulary

from .generate import GENERATION, call_defaults

LATENT_CHANNELS = 24
VAE_CONFIG: dict[str, Any] = {
    "base_dim": 24,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "z_dim": LATENT_CHANNELS,
    "temperal_downsample": [True, True],
    "is_residual": True,  # pixel-shuffle shortcuts: learns shapes from a fraction of the clips
    "patch_size": 4,
    "in_channels": 48,
    "out_channels": 48,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}
TEXT_WIDTH = 128
T5_CONFIG: dict[str, Any] = {
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 256,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 6,
    "rope_max_seq_len": 32,
}
MAX_TEXT = 512  # what diffusers' WanPipeline pads prompts to by default


@call_defaults(**GENERATION)
class WanPipeline(diffusers.WanPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose call has the arguments of the embedded model as defaults."""


def build_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """Return a fresh VAE; `mean` and `std` of its latents are known only after training."""
    return AutoencoderKLWan(
        **VAE_CONFIG,
        latents_mean=mean or [0.0] * LATENT_CHANNELS,
        latents_std=std or [1.0] * LATENT_CHANNELS,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer with one piece per known word; other words are spelled in letters."""
    # A word's piece is far more probable than its letters, so that known words are never split.
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0), (",", -1.0), (".", -1.0)]
    pieces += [(f"▁{word}", -1.0) for word in vocabulary()]
    pieces += [(letter, -10.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789-'!?:;"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TEXT,
    )


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Return a fresh text encoder of Wan's own class."""
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary_size, **T5_CONFIG))


def build_transformer() -> WanTransformer3DModel:
    """Return a fresh denoiser that starts as the zero function, which flow matching trains fastest from."""
    transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def build_scheduler(shift: float = 2.0) -> UniPCMultistepScheduler:
    """Return Wan's scheduler with a shift that suits small clips."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
