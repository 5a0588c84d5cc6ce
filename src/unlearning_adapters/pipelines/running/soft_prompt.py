"""Learn a soft prompt through a denoiser: vectors behind prompts that bring a concept back without its words.

Pham et al. 2023 (arXiv 2308.01508) and PROBE (arXiv 2603.21547), without the tokenizer: k vectors are optimised by the
denoiser's own training loss on clips of the concept. Weights get no gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.errors import DenoiserError

from .denoising_loss import denoising_of, pick
from .isolation import own_random_state
from .text_embeds import encode_texts, place_for

SPREAD = 0.3  # of the first vectors, in deviations of the prompts' own
RATE = 0.05  # of Adam, in the same unit


@dataclass(frozen=True)
class Learning:
    """What learning may spend.

    Args:
        tokens: Number of vectors.
        steps: Optimiser steps; 0 learns nothing.
        batch: Clips per step.
        seed: Seed of the first vectors, the noise and the order of the clips.
    """

    tokens: int = 8
    steps: int = 300
    batch: int = 8
    seed: int = 0


def learn_soft_prompt(
    pipe: Any, call: Mapping[str, Any], clean: Tensor, texts: Sequence[str], learning: Learning, progress: bool = False
) -> tuple[Tensor, list[float]]:
    """Return vectors of shape (tokens, width) and the loss before each step; no vectors with 0 steps.

    Args:
        pipe: A diffusers pipeline with one denoiser, edited or not.
        call: Arguments of its call.
        clean: Clean latents of clips of the concept, shape (clips, ...).
        texts: A prompt for each clip that does not name the concept.
        learning: What may be spent.
        progress: Whether to show a progress bar.

    Raises:
        DenoiserError: If the denoiser cannot be trained through, a prompt leaves no room for the vectors, gradients
            are off or the device has no memory for them.
    """
    check_gradients()
    with own_random_state(learning.seed):  # a denoiser that is trained draws for its dropout
        try:
            return _learned(pipe, call, clean, texts, learning, progress)
        except torch.OutOfMemoryError as error:
            raise DenoiserError(
                f"The device has no memory left for gradients of {learning.batch} clips. Take fewer clips per step "
                "(`batch_size` of a build), smaller ones, or switch gradient checkpointing on."
            ) from error


def check_gradients() -> None:
    """Raise `DenoiserError` inside of `torch.inference_mode()`, in which nothing can be learned."""
    if torch.is_inference_mode_enabled():
        raise DenoiserError("A soft prompt needs gradients. Call this outside of torch.inference_mode().")


def _learned(
    pipe: Any, call: Mapping[str, Any], clean: Tensor, texts: Sequence[str], learning: Learning, progress: bool
) -> tuple[Tensor, list[float]]:
    denoising = denoising_of(pipe, call, clean)
    with torch.no_grad():
        embeds, place = encode_texts(pipe, texts, call), place_for(pipe, texts, learning.tokens, call)
    words = embeds[embeds.abs().sum(-1) > 0].float()
    generator = torch.Generator("cpu").manual_seed(learning.seed)
    start = torch.randn(learning.tokens, embeds.shape[-1], generator=generator, dtype=torch.float32, device="cpu").to(
        embeds.device
    )
    vectors = (words.mean(0) + SPREAD * words.std() * start).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=RATE * float(words.std()))
    losses: list[float] = []
    for _ in tqdm(range(learning.steps), desc="Soft prompt", unit="step", disable=not progress):
        index = pick(len(clean), learning.batch, generator)
        with torch.enable_grad():
            loss = denoising.loss(clean[index].to(embeds.device), place(embeds[index], vectors), generator)
        (vectors.grad,) = torch.autograd.grad(loss, [vectors])  # of nothing else: the denoiser keeps its gradients
        optimizer.step()
        losses.append(loss.item())
    return vectors.detach() if learning.steps else vectors.detach()[:0], losses
