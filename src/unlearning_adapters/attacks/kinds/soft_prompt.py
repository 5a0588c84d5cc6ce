"""Learn a soft prompt against the edited model: vectors appended to prompts that do not name the concept.

The attack of Pham et al. 2023 (arXiv 2308.01508) and of PROBE (arXiv 2603.21547), without the tokenizer: k vectors are
set behind the prompt's embedding and optimised by the denoiser's own training loss on clips of the concept that the
base made. Where all prompts are padded to one length they take the place of padding, for such pipelines (CLIP, joint
attention) read no longer ones. The prompts leave the concept open, so only the learned vectors can bring it back. A
soft prompt can also create what a model never saw. Compare the rate with that of the same attack on a gold model.
"""

from dataclasses import replace

from torch import Tensor

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest
from unlearning_adapters.pipelines.running.soft_prompt import Learning, learn_soft_prompt
from unlearning_adapters.pipelines.running.text_embeds import place_for


def soft_prompt(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate with learned vectors behind open prompts; its number is the last loss, a mean of ten.

    Raises:
        EvaluationError: If there are no such prompts or no clips.
        DenoiserError: If a prompt leaves no room, or the denoiser cannot be trained through.
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
        DenoiserError: If the denoiser cannot be trained through.
    """
    if not len(examples.latents):
        raise EvaluationError(f"There are no clips of {target.concept!r} to learn a soft prompt from: it has no pairs.")
    texts = [target.without_words(request.text) for request in examples.requests]
    spent = Learning(budget.tokens, budget.soft_steps, budget.batch, budget.seed)
    found = learn_soft_prompt(subject.pipe, subject.call, examples.latents, texts, spent)
    subject.cost.steps += budget.soft_steps
    return found


def extended(subject: Subject, requests: tuple[ClipRequest, ...], vectors: Tensor) -> list[ClipRequest]:
    """Return the same prompts with the vectors behind their embeddings."""
    texts = [request.text for request in requests]
    embeds = place_for(subject.pipe, texts, len(vectors), subject.call)(subject.encode(texts), vectors)
    return [replace(request, embeds=row[None]) for request, row in zip(requests, embeds, strict=True)]
