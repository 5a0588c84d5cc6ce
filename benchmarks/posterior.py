"""A reference for edits at video tokens: the concept taken out of each prediction, by one who is told all values.

With guidance off, a prediction under a prompt that leaves a factor open is about the mean of the predictions under
prompts that name each of its values, `v = sum_k p_k v_k`, where p_k is how likely the noised clip is to become value k:
the mean of a mixture. So a fit of p, and the same mean without the concept, say what a model would draw that has never
seen the concept and is else the same. It takes a call for each value of each step, and the values must be known: no
adapter can do it, and none can be asked for more.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.pipelines.hooks import after_calls
from unlearning_adapters.shapeworld.world.prompts import find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .worlds import NEIGHBOURS, Sets

LENGTH = 32  # tokens that the embedded model reads


def value_prompts(value: str, sets: Sets, clips: int, seed: int) -> dict[str, list[str]]:
    """Return the prompts that name each value, the concept first, for each prompt of `sets`, by its text."""
    factor, target = find_factor(value), world_target(value, clips, seed)
    values = [value, *(other for other in FACTORS[factor] if other not in (value, "static"))]
    named = {one.text: (other.text, value) for one, other in zip(target.open_prompts, target.named, strict=True)}
    named |= {one.text: (one.text, value) for one in target.named}
    named |= {one.prompt: (one.prompt, one.factors[factor]) for one in sets[NEIGHBOURS]}
    return {
        text: [" ".join(word if word != own else other for word in full.split()) for other in values]
        for text, (full, own) in named.items()
    }


@contextmanager
def without_concept(pipe: Any, prompts: Mapping[str, Sequence[str]], gate: float) -> Iterator[None]:
    """Take the concept out of all predictions under a prompt, where it is at least as likely as the gate."""
    reads: dict[str, Tensor] = {}
    encode, network = pipe.encode_prompt, pipe.transformer

    def encoded(*args: Any, **kwargs: Any) -> Any:
        texts: Any = kwargs.get("prompt", args[0] if args else None)
        found = encode(*args, **kwargs)
        named = zip(*(prompts[text] for text in ([texts] if isinstance(texts, str) else texts)), strict=True)
        embeds = [
            encode(list(each), do_classifier_free_guidance=False, max_sequence_length=LENGTH)[0] for each in named
        ]
        reads.update(open=found[0], values=torch.stack(embeds))
        return found

    def changed(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        asked = kwargs["encoder_hidden_states"]
        if asked.shape != reads["open"].shape or not torch.equal(asked, reads["open"].to(asked)):
            return None  # the pass of the empty prompt
        options = [network.forward(*args, **{**kwargs, "encoder_hidden_states": each})[0] for each in reads["values"]]
        moves = [removed(clip, torch.stack(each), gate) for clip, *each in zip(output[0], *options, strict=True)]
        return (output[0] + torch.stack(moves), *output[1:])

    pipe.encode_prompt = encoded
    try:
        with ExitStack() as stack:
            after_calls(stack, network, changed)
            yield
    finally:
        del pipe.encode_prompt


def removed(prediction: Tensor, options: Tensor, gate: float) -> Tensor:
    """Return what takes the first option out of a prediction, as a mean of options.

    Args:
        prediction: Of one clip.
        options: Predictions under prompts that name each value, the concept first, (values, ...).
        gate: Share of the concept below which nothing changes.
    """
    p = mixture(prediction.flatten().double().numpy(), options.flatten(1).double().numpy())
    if p[0] < gate:
        return torch.zeros_like(prediction)
    others = p[1:] / p[1:].sum() if p[1:].sum() > 1e-3 else np.full(len(p) - 1, 1 / (len(p) - 1))
    change = torch.from_numpy(np.concatenate([[-p[0]], p[0] * others])).to(options)
    return torch.Tensor(torch.tensordot(change, options, dims=1))


def mixture(target: np.ndarray[Any, Any], options: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the weights p >= 0 of sum 1 with the least `|target - sum_k p_k options_k|`, shape (options,)."""
    middle = options.mean(0)
    columns = (options - middle).T
    heavy = 100 * max(float(np.abs(columns).max()), 1e-9)  # so that the sum is 1
    rows = np.vstack([columns, np.full((1, len(options)), heavy)])
    p, _ = nnls(rows, np.append(target - middle, heavy))
    return np.asarray(p / p.sum())
