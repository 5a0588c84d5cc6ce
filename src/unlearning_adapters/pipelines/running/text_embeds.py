"""Text embeddings: what the text encoder makes of prompts, and vectors that are put behind them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.errors import DenoiserError

# Further arguments that must fit the embeddings: a pipeline that has them cannot be given longer ones alone.
BOUND_TO_EMBEDS = ("prompt_attention_mask", "prompt_embeds_mask", "pooled_prompt_embeds", "prompt_embeds_2")

LONGER = "a a a a a a a a"  # than the empty prompt, where prompts are not padded to one length


def check_embeds(pipe: Any) -> None:
    """Raise `DenoiserError` if a pipeline cannot be given text embeddings alone."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    bound = [name for name in BOUND_TO_EMBEDS if name in parameters]
    if "prompt_embeds" not in parameters or bound or not hasattr(pipe, "encode_prompt"):
        why = f"wants `{bound[0]}` beside them" if bound else "takes no `prompt_embeds`"
        raise DenoiserError(
            f"{type(pipe).__name__} {why}, so that it can be given no soft prompt and no shifted one. Leave these out."
        )


def encode_texts(pipe: Any, texts: Sequence[str], call: Mapping[str, Any] | None = None) -> Tensor:
    """Return what the text encoder of a pipeline makes of prompts, of shape (prompts, tokens, width).

    Args:
        pipe: A diffusers pipeline.
        texts: The prompts.
        call: Arguments of its call, such as {"max_sequence_length": 32}.

    Raises:
        DenoiserError: If the pipeline cannot be given text embeddings alone.
    """
    check_embeds(pipe)
    parameters = inspect.signature(pipe.encode_prompt).parameters
    # The two that older pipelines demand, and newer ones know already.
    required = {"device": pipe._execution_device, "num_images_per_prompt": 1}
    demanded = {
        name: required[name]
        for name in required
        if name in parameters and parameters[name].default is inspect.Parameter.empty
    }
    options = {"do_classifier_free_guidance": False, **demanded, **(call or {})}
    arguments = {name: value for name, value in options.items() if name in parameters}
    output = pipe.encode_prompt(prompt=list(texts), **arguments)
    embeds: Tensor = output[0] if isinstance(output, tuple) else output
    return embeds


def append(embeds: Tensor, vectors: Tensor) -> Tensor:
    """Return embeddings (prompts, tokens + k, width) with the vectors behind each."""
    return torch.cat([embeds, vectors.to(embeds.dtype).expand(len(embeds), *vectors.shape)], 1)


def replace_last(embeds: Tensor, vectors: Tensor) -> Tensor:
    """Return embeddings (prompts, tokens, width) with the vectors in place of the last tokens, which are padding."""
    return append(embeds[:, : embeds.shape[1] - len(vectors)], vectors)


def place_for(
    pipe: Any, texts: Sequence[str], count: int, call: Mapping[str, Any] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return how `count` vectors are put behind prompts.

    Raises:
        DenoiserError: If all prompts are padded to one length and one of them leaves no room.
    """
    length = encode_texts(pipe, [""], call).shape[1]
    if encode_texts(pipe, [LONGER], call).shape[1] != length:
        return append
    tokenizer = getattr(pipe, "tokenizer", None)
    used = max(len(tokenizer(text).input_ids) for text in texts) if tokenizer is not None else 0
    if used + count > length:
        raise DenoiserError(
            f"A prompt has {used} of the {length} tokens that the pipeline reads, which leaves no room for {count} "
            "learned ones. Raise `max_sequence_length` if the pipeline has it, or take shorter prompts."
        )
    return replace_last
