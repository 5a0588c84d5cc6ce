"""A small denoiser like STDiT of Open-Sora, which is not in diffusers: a plain module, and a callable that runs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from denoiser_inputs import Words
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS, TEXT, TOKENS = 32, 4, 24, 8


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    split = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Query, key and value in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1)))


class TextAttention(nn.Module):
    """The video asks, the text answers; key and value in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q_linear, self.kv_linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.proj(attend(self.q_linear(x), *self.kv_linear(y).chunk(2, dim=-1)))


class Block(nn.Module):
    """Attention over space, over time and to the text, then an MLP; the time of the noise scales what it reads."""

    def __init__(self, cross: str) -> None:
        super().__init__()
        self.attn, self.attn_temp, self.cross = SelfAttention(), SelfAttention(), cross
        setattr(self, cross, TextAttention())
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """`x` has the shape (batch, frames, places, width)."""
        batch, frames, places, _ = x.shape
        x = x + self.attn((self.norm(x) * (1 + t)).flatten(0, 1)).unflatten(0, (batch, frames))
        over_time = self.attn_temp(self.norm(x).transpose(1, 2).flatten(0, 1))
        x = x + over_time.unflatten(0, (batch, places)).transpose(1, 2)
        x = x + getattr(self, self.cross)(x.flatten(1, 2), y).unflatten(1, (frames, places))
        return x + self.mlp(self.norm(x) * (1 + t))


class STDiT(nn.Module):
    """Args: cross, the name of the attention to the text in each block; depth, the number of blocks."""

    def __init__(self, cross: str = "cross_attn", depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.x_embedder = nn.Conv3d(4, WIDTH, (1, 2, 2), stride=(1, 2, 2))
            self.t_embedder = nn.Linear(1, WIDTH)
            self.y_embedder = nn.Sequential(nn.Linear(TEXT, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
            self.blocks = nn.ModuleList(Block(cross) for _ in range(depth))
            self.final_layer = nn.Linear(WIDTH, 16)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x)
        size = x.shape[2:]
        x, y = x.flatten(3).permute(0, 2, 3, 1), self.y_embedder(y)
        t = self.t_embedder(timestep[:, None])[:, None, None]
        for block in self.blocks:
            x = block(x, y, t)
        return self.final_layer(x).unflatten(2, size[1:])


def run(model: nn.Module, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
    """Predict once for each prompt from the noise of its generator."""
    text = torch.cat([Words(prompt)(1, TOKENS, TEXT) for prompt in prompts])
    noise = torch.cat([torch.randn(1, 4, 2, 8, 8, generator=generator) for generator in generators])
    with torch.no_grad():
        return model(noise, torch.full((len(prompts),), 0.5), text)
