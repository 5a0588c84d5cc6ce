"""Teach the concept again: a LoRA of rank 4 on a few clips of it, and the rate after each number of steps.

Training can teach any concept, even to a model that never knew it. The curve shows how fast. Compare it with the curve
of a gold model, which never saw the concept.
"""

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject, plain_copy
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.pipelines.running.denoising_loss import denoising_of, one_denoiser, pick

RANK = 4
RATE = 1e-3
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def resurrection(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the recovery curve; the number of a point is the loss before its last step.

    The LoRA is trained on a copy of the denoiser, as one who holds the checkpoint would train it.

    Raises:
        EvaluationError: If there are no clips, or the denoiser cannot be trained through.
    """
    if not len(examples.latents):
        raise EvaluationError(f"There are no clips of {target.concept!r} to teach it from: it has no pairs.")
    student = subject.on(plain_copy(subject.pipe))
    denoising = denoising_of(student.pipe, student.call, examples.latents)
    parameters = add_lora(student.pipe, budget.seed)
    embeds = student.encode([request.text for request in examples.requests]).detach()
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    generator = torch.Generator().manual_seed(budget.seed)
    points, step, last = [], 0, None
    for steps in budget.lora_steps:
        for _ in range(steps - step):
            index = pick(len(examples.latents), budget.batch, generator)
            loss = denoising.loss(examples.latents[index].to(embeds.device), embeds[index], generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = loss.item()
        subject.cost.steps += steps - step
        step = steps
        points.append(AttackPoint.of(f"{steps} steps", student.look(target.named, target), last))
    return tuple(points)


def add_lora(pipe: Any, seed: int) -> list[nn.Parameter]:
    """Put a LoRA, at first without effect, on the attention layers of the denoiser; return what can be trained."""
    _, network = one_denoiser(pipe)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not any(name.endswith(LAYERS) for name in names):
        raise EvaluationError(f"{type(network).__name__} has no attention layers named {', '.join(LAYERS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)), network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
