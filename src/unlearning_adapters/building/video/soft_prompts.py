"""Rounds against soft prompts: learn one against the edit, and read what it makes the layers read, in closed form.

The weights that are edited get no gradient: only the vectors of the soft prompt are learned. What they make the
denoiser read joins the moments from which all directions are solved anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.pipelines.hooks import before_calls
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.compiling import any_compiled, eager
from unlearning_adapters.pipelines.running.denoising_loss import one_denoiser
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.running.soft_prompt import Learning, check_gradients, learn_soft_prompt
from unlearning_adapters.pipelines.running.text_embeds import check_embeds, encode_texts, place_for
from unlearning_adapters.pipelines.sites import denoisers, site_module

from .scenes import Scenes, rough

VECTORS = 8  # of a soft prompt
STEPS = 200
LEARNED = 5  # clips per step, at most
CLIPS = 10  # under each soft prompt


def check_learns(pipe: Any, texts: Sequence[str], call_kwargs: Mapping[str, Any] | None) -> None:
    """Raise `DenoiserError` if no soft prompt can be learned through a pipeline's denoiser, or put behind texts."""
    check_gradients()
    one_denoiser(pipe)
    check_embeds(pipe)
    place_for(pipe, texts, VECTORS, call_kwargs)


@torch.no_grad()
def soft_scenes(
    pipe: Any,
    shown: Tensor,
    texts: tuple[str, ...],
    edit: Mapping[str, Direction],
    seed: int,
    call_kwargs: Mapping[str, Any] | None,
    batch: int,
    progress: bool = False,
) -> Scenes:
    """Return clips of the edited pipeline with a soft prompt learned against it, beside those without it.

    Args:
        pipe: A diffusers pipeline with one denoiser, not edited yet.
        shown: Clean latents of clips of the concept, shape (clips, parts, ...), from which the soft prompt is learned.
        texts: For each clip the words of its scene without the concept.
        edit: The edit of each site, by name, with its strength in `write`.
        seed: Seed of the soft prompt and of the clips.
        call_kwargs: Arguments of the pipeline's call.
        batch: Clips per call, and per step of the learning, at most.
        progress: Whether to show a progress bar.

    Returns:
        Scenes of two copies: a clip with the soft prompt, and one of the same noise without it, as which it must be
        read; and the latter twice, read with the soft prompt and without.

    Raises:
        DenoiserError: If the denoiser cannot be trained through, or the pipeline takes no text embeddings.
    """
    call = dict(call_kwargs or {})
    run = PartialRun(pipe, rough(pipe, call_kwargs), any_video=False, own_guidance=True)
    # A pipeline that steps frames as parts of the batch gives them to its denoiser as one clip, behind the channels.
    shown = shown[:, 0] if shown.shape[1] == 1 else shown.transpose(1, 2)
    learning = Learning(VECTORS, STEPS, min(batch, LEARNED, len(texts)), seed)
    with edited(pipe, edit):
        vectors, _ = learn_soft_prompt(pipe, call, shown, texts, learning, progress)
        behind = place_for(pipe, texts, VECTORS, call)
        plain = encode_texts(pipe, texts, call)
        silent = plain if behind(plain, vectors).shape == plain.shape else behind(plain, torch.zeros_like(vectors))
        embeds = torch.stack([behind(plain, vectors), silent], 1)[[index % len(texts) for index in range(CLIPS)]]
        seeds = [seed + 2000 + index // 2 for index in range(2 * CLIPS)]
        asked = embeds.flatten(0, 1)
        batch = 1 if run.one_by_one else batch
        parts = [slice(start, start + batch) for start in range(0, len(asked), batch)]
        clips = torch.cat([clean_latents(run, asked[part], seeds[part]) for part in parts]).unflatten(0, (CLIPS, 2))
    return Scenes(torch.cat([clips, clips[:, [1, 1]]]), torch.cat([embeds, embeds]), (None,) * (2 * CLIPS))


@contextmanager
def edited(pipe: Any, edit: Mapping[str, Direction]) -> Iterator[None]:
    """Let an edit act on what the sites read, without a change of any weight: `x - sum_j write_j (read_j . x)`.

    Args:
        pipe: A diffusers pipeline.
        edit: The edit of each site, by name; its strength and gain are in `write`.
    """
    with ExitStack() as stack:
        stack.enter_context(eager(any_compiled(pipe.components.values())))
        # Gradient checkpointing calls the layers again in a thread of autograd, to which `before_calls` is deaf.
        again = any(getattr(network, "is_gradient_checkpointing", False) for network in denoisers(pipe).values())
        for name, direction in edit.items():
            module, hook = site_module(pipe, name), _edits(direction)
            if again:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                before_calls(stack, module, hook)
        yield


def _edits(direction: Direction) -> Callable[..., Any]:
    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        key = None if args else next(iter(kwargs))
        tensor: Tensor = args[0] if key is None else kwargs[key]
        read, write = direction.read.to(tensor), direction.write.to(tensor)
        changed = tensor - (tensor @ read.T) @ write
        return ((changed, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: changed})

    return hook
