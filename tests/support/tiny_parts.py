"""Parts of tiny whole pipelines that several families share: made in memory, offline, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import tiny_text_encoder, tiny_tokenizer, tiny_wan_vae
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


def made(maker: Callable[..., nn.Module], /, *args: Any, seed: int = 0, **config: Any) -> Any:
    """A model from a seed, with random numbers where a fresh one has zeros that switch parts of it off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = maker(*args, **config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_parts(**parts: Any) -> dict[str, Any]:
    """A T5 text encoder with one token per word, the Wan VAE, a flow-matching scheduler, and what is given."""
    with torch.random.fork_rng(devices=[]):
        tokenizer = tiny_tokenizer()
        shared = {
            "tokenizer": tokenizer,
            "text_encoder": tiny_text_encoder(len(tokenizer)),
            "vae": tiny_wan_vae(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }
    return {**shared, **parts}


def clip_vision(width: int = 4, side: int = 4) -> dict[str, Any]:
    """A CLIP image encoder that gives one token per pixel, and its processor."""
    config = CLIPVisionConfig(
        hidden_size=width, projection_dim=width, num_hidden_layers=2, num_attention_heads=2, image_size=side,
        intermediate_size=16, patch_size=1,
    )  # fmt: skip
    return {
        "image_encoder": made(CLIPVisionModelWithProjection, config),
        "image_processor": CLIPImageProcessor(crop_size=side, size=side),
    }
