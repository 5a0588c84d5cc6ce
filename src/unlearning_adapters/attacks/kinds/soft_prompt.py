"""Learn a soft prompt against the edited model: vectors appended to prompts that do not name the concept.

The attack of Pham et al. 2023 (arXiv 2308.01508) and of PROBE (arXiv 2603.21547), without the tokenizer: k vectors are
set behind the prompt's embedding and optimised by the denoiser's own training loss on clips of the concept that the
base made. Where all prompts are padded to one length they take the place of padding, for such pipelines (CLIP, joint
attention) read no longer ones. The prompts leave the concept open, so only the learned vectors can bring it back. A
soft prompt can also create what a model never saw. Compare the rate with that of the same attack on a gold model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.denoising_loss import Examples, denoising_of, pick
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest

SPREAD = 0.3  # of the first vectors, in deviations of the prompts' own
RATE = 0.05  # of Adam, in the same unit


def soft_prompt(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate with learned vectors behind open prompts; its number is the last loss, a mean of ten.

    Raises:
        EvaluationError: If there are no such prompts or no clips, a prompt leaves no room, or the denoiser cannot be
            trained through.
    """
    requests = target.open_prompts
    if not requests:
        raise EvaluationError(f"The suite of {target.concept!r} has no `words` that could be left out of its prompts.")
    vectors, losses = learn(subject, target, examples, budget)
    last = sum(losses[-10:]) / len(losses[-10:]) if losses else None
    setting = f"{len(vectors)} vectors, {budget.soft_steps} steps"
    return (
        AttackPoint.of(setting, subject.look(extended(subject, requests, vectors), target), last, open_prompts=True),
    )


def learn(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[Tensor, list[float]]:
    """Return k vectors (k, width) and the loss before each step; with 0 steps, return an empty tensor of vectors.

    Raises:
        EvaluationError: If there are no clips to learn from.
    """
    if not len(examples.latents):
        raise EvaluationError(f"There are no clips of {target.concept!r} to learn a soft prompt from: it has no pairs.")
    denoising = denoising_of(subject, examples.latents)
    texts = [target.without_words(request.text) for request in examples.requests]
    embeds, place = subject.encode(texts), place_for(subject, texts, budget.tokens)
    words = embeds[embeds.abs().sum(-1) > 0].float()
    generator = torch.Generator("cpu").manual_seed(budget.seed)
    start = torch.randn(budget.tokens, embeds.shape[-1], generator=generator, dtype=torch.float32, device="cpu").to(
        embeds.device
    )
    vectors = (words.mean(0) + SPREAD * words.std() * start).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=RATE * float(words.std()))
    losses: list[float] = []
    for _ in range(budget.soft_steps):
        index = pick(len(examples.latents), budget.batch, generator)
        clean = examples.latents[index].to(embeds.device)
        loss = denoising.loss(clean, place(embeds[index], vectors), generator)
        (vectors.grad,) = torch.autograd.grad(loss, [vectors])  # of nothing else: the denoiser keeps its gradients
        optimizer.step()
        losses.append(loss.item())
    subject.cost.steps += budget.soft_steps
    return vectors.detach() if budget.soft_steps else vectors.detach()[:0], losses


def append(embeds: Tensor, vectors: Tensor) -> Tensor:
    """Return embeddings (prompts, tokens + k, width) with the vectors behind each."""
    return torch.cat([embeds, vectors.to(embeds.dtype).expand(len(embeds), *vectors.shape)], 1)


def replace_last(embeds: Tensor, vectors: Tensor) -> Tensor:
    """Return embeddings (prompts, tokens, width) with the vectors in place of the last tokens, which are padding."""
    return append(embeds[:, : embeds.shape[1] - len(vectors)], vectors)


def place_for(subject: Subject, texts: Sequence[str], count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return how `count` vectors are put behind prompts.

    Raises:
        EvaluationError: If all prompts are padded to one length and one of them leaves no room.
    """
    longest = max(texts, key=len)
    length = subject.encode([longest]).shape[1]
    if subject.encode([""]).shape[1] != length:
        return append
    tokenizer = getattr(subject.pipe, "tokenizer", None)
    used = max(len(tokenizer(text).input_ids) for text in texts) if tokenizer is not None else 0
    if used + count > length:
        raise EvaluationError(
            f"A prompt has {used} of the {length} tokens that the pipeline reads, which leaves no room for {count} "
            "learned ones. Lower the `tokens` of the budget, or raise `max_sequence_length` if the pipeline has it."
        )
    return replace_last


def extended(subject: Subject, requests: tuple[ClipRequest, ...], vectors: Tensor) -> list[ClipRequest]:
    """Return the same prompts with the vectors behind their embeddings."""
    texts = [request.text for request in requests]
    embeds = place_for(subject, texts, len(vectors))(subject.encode(texts), vectors)
    return [replace(request, embeds=row[None]) for request, row in zip(requests, embeds, strict=True)]
