"""How much each attack may try."""

from dataclasses import dataclass

from unlearning_adapters.errors import EvaluationError


@dataclass(frozen=True)
class Budget:
    """What all attacks may spend; every number is in the report.

    Args:
        name: Name of the budget.
        prompts: Prompts of each kind.
        denoising_steps: Steps per clip in the embedded world; 0 takes its own number. Other pipelines keep theirs.
        guidance: Guidance scales.
        seeds: Seeds per prompt of the seed search.
        etas: Sizes of the embedding shift, in mean differences.
        tokens: Vectors of the soft prompt.
        soft_steps: Optimiser steps of the soft prompt.
        lora_steps: Optimiser steps after which the LoRA is measured, rising.
        batch: Clips per optimiser step.
        strengths: Shares of the schedule that a video-to-video start denoises.
        seed: Seed of whatever an attack draws.
    """

    name: str = "small"
    prompts: int = 10
    denoising_steps: int = 6
    guidance: tuple[float, ...] = (1.0, 6.0)
    seeds: int = 3
    etas: tuple[float, ...] = (1.0, 3.0)
    tokens: int = 4
    soft_steps: int = 50
    lora_steps: tuple[int, ...] = (0, 10, 30)
    batch: int = 8
    strengths: tuple[float, ...] = (0.7, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"prompts": 1, "denoising_steps": 0, "seeds": 1, "tokens": 1, "soft_steps": 0, "batch": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise EvaluationError(
                    f"Expected `{name}` of a budget to be a whole number from {low}, but got {value!r}."
                )
        if list(self.lora_steps) != sorted(set(self.lora_steps)) or min(self.lora_steps, default=0) < 0:
            raise EvaluationError(f"Expected `lora_steps` of a budget to rise from 0, but got {self.lora_steps!r}.")
        if not all(0 < value <= 1 for value in self.strengths):
            raise EvaluationError(f"Expected `strengths` of a budget from 0 to 1, but got {self.strengths!r}.")


MEDIUM = Budget(
    name="medium",
    prompts=24,
    denoising_steps=0,
    guidance=(1.0, 2.0, 4.5, 7.0, 10.0),
    seeds=8,
    etas=(0.5, 1.0, 2.0, 4.0, 8.0),
    tokens=8,
    soft_steps=300,
    lora_steps=(0, 10, 25, 50, 100, 200),
    strengths=(0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
)
BUDGETS = {"small": Budget(), "medium": MEDIUM}


def find_budget(value: "str | Budget") -> Budget:
    """Return a budget by name.

    Raises:
        EvaluationError: If there is none of that name.
    """
    if isinstance(value, Budget):
        return value
    if value not in BUDGETS:
        raise EvaluationError(f"Unknown budget {value!r}. Known: {', '.join(BUDGETS)}.")
    return BUDGETS[value]
