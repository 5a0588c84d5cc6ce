"""A pipeline whose denoiser is of no known kind: its prompts are packed into one sequence."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class PackedDenoiser(ModelMixin, ConfigMixin):
    """A denoiser of no known kind: the prompts of a batch are joined to one sequence without padding."""

    @register_to_config
    def __init__(self, width: int = 8):
        super().__init__()
        self.refine = nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.ModuleDict({"words": nn.Linear(width, width)}) for _ in range(2))
        self.picture = nn.Linear(width, width)

    def forward(self, latents, words):
        text = self.refine(words)
        return self.picture(latents) + sum(layer["words"](text).mean() for layer in self.layers)


class PackedPipeline(DiffusionPipeline):
    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=5, generator=None):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        table = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
        words = [table[[sum(map(ord, word)) for word in text.split()]] for text in prompts]
        first = generator[0] if isinstance(generator, list) else generator
        latents = torch.randn(len(prompts), 8, generator=first)
        for _ in range(num_inference_steps):
            latents = self.transformer(latents, torch.cat(words))
        return latents


def packed_pipeline() -> PackedPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PackedPipeline(PackedDenoiser())
