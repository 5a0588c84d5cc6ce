"""Inputs of every video denoiser of diffusers, tiny, from three sources: the prompt, the noise and the pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TEXT, TOKENS = 16, 6  # width and number of the prompt's tokens
TIME = torch.tensor([500])


class Noise:
    """Random numbers that a seed determines: the latents, or pictures."""

    def __init__(self, seed: int) -> None:
        self.maker = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.maker)


class Words:
    """A text encoder without context: a random row per word, and one for padding; pooled, their mean."""

    def __init__(self, prompt: str) -> None:
        self.words = prompt.split()

    def __call__(self, *shape: int) -> Tensor:
        rows = torch.stack([_row(word, shape[-1]) for word in self.words])
        if len(shape) == 2 and shape[0] == 1:
            return rows.mean(dim=0, keepdim=True)
        padding = _row("", shape[-1]).expand(shape[-2], -1)
        return torch.cat([rows, padding])[: shape[-2]].reshape(shape)

    def ids(self, count: int, below: int) -> Tensor:
        """One number per word."""
        return torch.tensor([zlib.crc32(word.encode()) % below for word in self.words])[:count]


def _row(word: str, width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


Inputs = Callable[[Words, Noise, Noise], dict[str, Any]]


def wan_like(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {"hidden_states": noise(1, 4, 2, 8, 8), "timestep": TIME, "encoder_hidden_states": text(1, TOKENS, TEXT)}


def with_pictures(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    # With image keys the processors take the last 512 tokens for text, whatever they are.
    return {
        **wan_like(text, noise, image),
        "encoder_hidden_states": text(1, 512, TEXT),
        "encoder_hidden_states_image": image(1, 4, TEXT),
    }


def masked(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "encoder_attention_mask": torch.ones(1, TOKENS)}


def frames_first(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "hidden_states": noise(1, 2, 4, 8, 8)}


def vace(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "control_hidden_states": image(1, 12, 2, 8, 8)}


def wan_animate(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **wan_like(text, noise, image),
        "hidden_states": noise(1, 12, 3, 4, 4),
        "encoder_hidden_states_image": image(1, 4, TEXT),
        "pose_hidden_states": image(1, 4, 2, 4, 4),
        "face_pixel_values": image(1, 3, 5, 16, 16),
    }


def wan_animate_2(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [noise(16, 2, 4, 4)],
        "timestep": torch.ones(1),
        "encoder_hidden_states": [text(TOKENS, TEXT)],
        "condition_latents": [image(20, 2, 4, 4)],
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


def ltx(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 32, 4),
        "timestep": TIME,
        "encoder_hidden_states": text(1, TOKENS, TEXT),
        "encoder_attention_mask": torch.ones(1, TOKENS),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def ltx2(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **ltx(text, noise, image),
        "audio_hidden_states": noise(1, 3, 4),
        "audio_encoder_hidden_states": text(1, TOKENS, TEXT),
        "audio_num_frames": 3,
        "sigma": TIME.float(),
    }


def refiner(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2AudioVideoRotaryPosEmbed

    rope = SanaWMLTX2AudioVideoRotaryPosEmbed(
        dim=16, patch_size=1, patch_size_t=1, base_num_frames=20, base_height=2048, base_width=2048,
        scale_factors=(8, 32, 32), modality="video", double_precision=False, num_attention_heads=2,
    )  # fmt: skip
    return {
        "hidden_states": noise(1, 32, 4),
        "timestep": torch.full((1, 32), 500.0),
        "encoder_hidden_states": text(1, TOKENS, TEXT),
        "encoder_attention_mask": torch.ones(1, TOKENS),
        "video_rotary_emb": rope(rope.prepare_video_coords(1, 2, 4, 4, device="cpu", fps=24.0), device="cpu"),
    }


def consisid(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **frames_first(text, noise, image),
        "id_vit_hidden": [image(1, 2, 2)],
        "id_cond": image(1, 2),
    }


def hunyuan(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **masked(text, noise, image),
        "hidden_states": noise(1, 4, 2, 4, 4),
        "pooled_projections": text(1, 8),
        "guidance": TIME,
    }


def framepack(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **hunyuan(text, noise, image),
        "image_embeds": image(1, 5, TEXT),
        "indices_latents": torch.arange(2),
        "latents_clean": image(1, 4, 2, 4, 4),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": image(1, 4, 2, 4, 4),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": image(1, 4, 4, 4, 4),
        "indices_latents_history_4x": torch.arange(4),
    }


def hunyuan_15(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **masked(text, noise, image),
        "hidden_states": noise(1, 4, 1, 8, 8),
        "timestep": TIME.float(),
        "encoder_hidden_states_2": text(1, 4, 8),
        "encoder_attention_mask_2": torch.ones(1, 4),
        "image_embeds": image(1, 3, 12),
    }


def cosmos_projected(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "encoder_hidden_states": text(1, TOKENS, 2 * TEXT)}


def cosmos_pictures(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "encoder_hidden_states": (text(1, TOKENS, TEXT), image(1, 4, 8))}


def easy_animate(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "encoder_hidden_states_t5": text(1, TOKENS, TEXT)}


def motif_pictures(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**wan_like(text, noise, image), "image_embeds": image(1, 3, 12)}


def cosmos_3(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    video = torch.arange(TOKENS, TOKENS + 4)
    return {
        "input_ids": text.ids(TOKENS, 32),
        "text_indexes": torch.arange(TOKENS),
        "position_ids": torch.arange(TOKENS + 4).expand(3, -1),
        "und_len": TOKENS,
        "sequence_length": TOKENS + 4,
        "vision_tokens": [noise(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def sana_wm(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    cameras = torch.cat([torch.eye(4).flatten(), torch.tensor([8.0, 8.0, 4.0, 4.0])]).repeat(1, 4, 1)
    cameras[..., 11] = torch.arange(4) * 0.1
    return {
        "hidden_states": noise(1, 4, 4, 8, 8),
        "timestep": torch.full((1, 1, 4), 500.0),
        "encoder_hidden_states": text(1, 1, TOKENS, TEXT),
        "encoder_attention_mask": torch.ones(1, TOKENS, dtype=torch.long),
        "camera_conditions": cameras,
        "chunk_plucker": image(1, 8, 4, 8, 8),
    }


def kandinsky_5(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 2, 4, 4, 4),
        "encoder_hidden_states": text(1, TOKENS, TEXT),
        "timestep": TIME,
        "pooled_projections": text(1, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
        "text_rope_pos": torch.arange(TOKENS),
    }


def kandinsky_6(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 2, 4, 4, 9),
        "encoder_hidden_states": text(1, TOKENS, TEXT),
        "timestep": TIME.float(),
        "pooled_projections": text(1, 8),
        "audio_hidden_states": noise(1, 3, 4),
    }


def any_flow(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    time = torch.full((1, 2), 500.0)
    return {**frames_first(text, noise, image), "timestep": time, "r_timestep": time / 2}


def any_flow_far(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**any_flow(text, noise, image), "chunk_partition": [1, 1]}


def helios(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        **wan_like(text, noise, image),
        "indices_hidden_states": torch.ones(1, 2),
        "indices_latents_history_short": torch.ones(1, 1),
        "indices_latents_history_mid": torch.ones(1, 1),
        "indices_latents_history_long": torch.ones(1, 4),
        "latents_history_short": image(1, 4, 1, 8, 8),
        "latents_history_mid": image(1, 4, 1, 8, 8),
        "latents_history_long": image(1, 4, 4, 8, 8),
    }


def unet(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {"sample": noise(1, 4, 2, 8, 8), "timestep": TIME, "encoder_hidden_states": text(1, TOKENS, TEXT)}


def unet_2d(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**unet(text, noise, image), "sample": noise(1, 4, 8, 8)}


def pooled(inputs: Inputs) -> Inputs:
    def make(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
        extra = {"text_embeds": text(1, 8), "time_ids": torch.arange(6.0)[None]}
        return {**inputs(text, noise, image), "added_cond_kwargs": extra}

    return make


def motion(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {**unet(text, noise, image), "encoder_hidden_states": text(1, TOKENS, TEXT).repeat(2, 1, 1)}


def i2vgen(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    extra = {"fps": torch.tensor([8]), "image_latents": image(1, 4, 2, 8, 8), "image_embeddings": image(1, TEXT)}
    return {**unet(text, noise, image), **extra}


def svd(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    return {
        "sample": noise(1, 2, 8, 8, 8),
        "timestep": TIME,
        "encoder_hidden_states": image(1, 1, TEXT),
        "added_time_ids": torch.arange(3.0)[None],
    }


def minimax(text: Words, noise: Noise, image: Noise) -> dict[str, Any]:
    audio, video = torch.arange(TOKENS, TOKENS + 3), torch.arange(TOKENS + 3, TOKENS + 11)
    tags = torch.tensor([1] * TOKENS + [2] * 3 + [0] * 8)
    return {
        "hidden_states": noise(1, 8, 16),
        "audio_hidden_states": noise(1, 3, 6),
        "encoder_hidden_states": text(1, TOKENS, TEXT),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": torch.arange(len(tags) * 3).reshape(-1, 3).float(),
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": torch.arange(TOKENS),
    }
