"""Shift the text embedding towards the concept: the continuous form of Ring-A-Bell, which needs no search.

The concept is what the text encoder makes of it, c = mean(enc(with) - enc(without)) over pairs, and the denoiser reads
enc(p) + eta c (Tsai et al. 2024, arXiv 2310.10012, where tokens are then searched that come near it; the shifted
embedding itself is what that search aims at).
"""

from dataclasses import replace

import torch
from torch import Tensor

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest


def embedding_shift(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate at each eta, for prompts that name the concept and for those that leave it open.

    Raises:
        EvaluationError: If the concept has no pairs, or the pipeline takes no embeddings.
    """
    del examples
    shift = mean_shift(subject, target)
    kinds = {"named": target.named, "open": target.open_prompts}
    points = []
    for kind, requests in kinds.items():
        for eta in budget.etas if requests else ():
            verdicts = subject.look(shifted(subject, requests, shift, eta), target)
            points.append(AttackPoint.of(f"eta {eta:g}, {kind}", verdicts, eta, kind == "open"))
    return tuple(points)


def mean_shift(subject: Subject, target: Target) -> Tensor:
    """Return the mean difference of the text encoder's output over the pairs, of shape (1, tokens, width)."""
    if not target.pairs:
        raise EvaluationError(f"The concept {target.concept!r} has no pairs to take an embedding shift from.")
    unsafe, safe = zip(*target.pairs, strict=True)
    shift = (subject.encode(unsafe) - subject.encode(safe)).mean(0, keepdim=True)
    return torch.as_tensor(shift)


def shifted(subject: Subject, requests: tuple[ClipRequest, ...], shift: Tensor, eta: float) -> list[ClipRequest]:
    """Return the same prompts with embeddings that are moved by `eta * shift`; eta 0 is what the pipeline reads."""
    embeds = subject.encode([request.text for request in requests])
    if embeds.shape[1:] != shift.shape[1:]:
        raise EvaluationError(
            f"Embeddings of prompts have {embeds.shape[1]} tokens and those of the pairs {shift.shape[1]}; "
            "this attack needs a text encoder that pads all prompts to one length."
        )
    return [replace(request, embeds=row[None] + eta * shift) for request, row in zip(requests, embeds, strict=True)]
