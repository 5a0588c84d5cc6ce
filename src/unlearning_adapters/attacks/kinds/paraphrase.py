"""Ask by other words: synonyms and paraphrases that are held out from the adapter's pairs as sentences."""

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.denoising_loss import Examples
from unlearning_adapters.attacks.subject import Point, Subject
from unlearning_adapters.attacks.target import Target
from unlearning_adapters.errors import EvaluationError


def paraphrase(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[Point, ...]:
    """Return the rate for prompts that name the concept by other words.

    Raises:
        EvaluationError: If the suite has none.
    """
    del examples, budget
    if not target.paraphrases:
        raise EvaluationError(f"The suite of {target.concept!r} has no paraphrases. Add a set with that role.")
    return (Point.of("other words", subject.look(target.paraphrases, target)),)
