"""Tiny random-weight pipelines, made in memory and offline: real diffusers classes that run within a second."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from copies import copier
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

WORDS = (
    "a an the of on in at and with near is are very no one two video clip photo "
    "red green blue yellow black white grey circle square triangle cross dog cat man woman tree car house street river "
    "moves runs stands sits walks left right up down slowly quickly sunny dark quiet busy old young small large"
).split()
CALL = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
TEXT_DIM = 32
BOUNDARY = {False: None, True: 0.875}  # by whether there are two denoisers
KEY = "transformer.blocks.0.attn2.to_k"
PROMPTS = ["a red circle moves left", "two dogs run on a quiet street at night", "very dark cat", "a car", "old man"]


def tiny_tokenizer() -> T5Tokenizer:
    """One token per word of `WORDS`, single letters for all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-'"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS if len(word) > 1]
    pieces += [(f"▁{letter}", -5.0) for letter in letters] + [(letter, -5.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def tiny_text_encoder(vocab_size: int, seed: int = 0) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder of width 32."""
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=vocab_size, d_model=TEXT_DIM, d_ff=37, d_kv=8, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, dropout_rate=0.0,
    )  # fmt: skip
    return UMT5EncoderModel(config).eval()


def tiny_wan_transformer(seed: int = 0, heads: int = 4, layers: int = 2, **changes: object) -> WanTransformer3DModel:
    """A Wan denoiser of width `12 * heads`."""
    torch.manual_seed(seed)
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": heads, "attention_head_dim": 12, "in_channels": 16,
        "out_channels": 16, "text_dim": TEXT_DIM, "freq_dim": 32, "ffn_dim": 40, "num_layers": layers,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    return WanTransformer3DModel(**{**config, **changes}).eval()


def tiny_wan_vae(seed: int = 0) -> AutoencoderKLWan:
    """A Wan VAE that makes 2 x 2 x 2 latents of 5 frames of 16 x 16 pixels."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return vae.eval()


def tiny_wan_pipeline(
    two_denoisers: bool = False, *, seed: int = 0, dtype: torch.dtype = torch.float32, heads: int = 4, layers: int = 2
) -> WanPipeline:
    """A `WanPipeline`; with `two_denoisers` the one of Wan 2.2, whose `transformer_2` takes the late steps.

    Call it as `pipe("a red circle", **CALL)`. It leaves torch's global generator as it found it.
    """
    pipe = WanPipeline(**_copier(two_denoisers, seed, dtype, heads, layers)(), boundary_ratio=BOUNDARY[two_denoisers])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _copier(
    two_denoisers: bool, seed: int, dtype: torch.dtype, heads: int, layers: int
) -> Callable[[], dict[str, Any]]:
    """Return what makes the parts of a pipeline: copies of the first ones, for hundreds of tests ask for the same."""
    with torch.random.fork_rng(devices=[]):
        tokenizer = tiny_tokenizer()
        networks = {
            "text_encoder": tiny_text_encoder(len(tokenizer), seed),
            "vae": tiny_wan_vae(seed),
            "transformer": tiny_wan_transformer(seed, heads, layers),
            "transformer_2": tiny_wan_transformer(seed + 1, heads, layers) if two_denoisers else None,
        }
    for network in networks.values():
        if dtype != torch.float32 and network is not None:
            cast(network, dtype)
    return copier({"tokenizer": tokenizer, **networks, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})


def tiny_wan_image_pipeline(seed: int = 0) -> WanImageToVideoPipeline:
    """A `WanImageToVideoPipeline` as that of Wan 2.2: the picture enters through the VAE, not as tokens."""
    with torch.random.fork_rng(devices=[]):
        tokenizer = tiny_tokenizer()
        pipe = WanImageToVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=tiny_text_encoder(len(tokenizer), seed),
            vae=tiny_wan_vae(seed),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=tiny_wan_transformer(seed, in_channels=36),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast a model as `from_pretrained(torch_dtype=...)` does: some modules stay in float32."""
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)


def untrained(family: str) -> Any:
    """Return a ShapeWorld model of a family with random weights, also where training starts from zero."""
    from unlearning_adapters.shapeworld.models.wan import build_tokenizer
    from unlearning_adapters.shapeworld.training.family import FAMILIES, Conditioned

    torch.manual_seed(0)
    found, tokenizer = FAMILIES[family], build_tokenizer()
    tokenizer.model_max_length = found.text_tokens
    model = Conditioned(found, len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    parts = {"vae": found.build_vae().eval(), "text_encoder": model.text_encoder, "denoiser": model.denoiser}
    return found.assemble({**parts, "tokenizer": tokenizer, "scheduler": found.build_scheduler()})


def generate(pipe: WanPipeline, prompt: str = "a red circle moves left") -> torch.Tensor:
    """The latents of a seeded clip."""
    generator = torch.Generator().manual_seed(5)
    return pipe(prompt, generator=generator, output_type="latent", **CALL).frames
