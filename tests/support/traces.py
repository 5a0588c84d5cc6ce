"""What a call could leave behind on a pipeline: hooks, attributes, and the state of its scheduler."""

from __future__ import annotations

from torch import nn


def count_hooks(pipe) -> int:
    models = [model for model in pipe.components.values() if isinstance(model, nn.Module)]
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) + len(module._forward_pre_hooks_with_kwargs)
        for model in models
        for module in model.modules()
    )


def plain_state(pipe) -> dict:
    """Everything on the pipeline and its scheduler that a call could change."""
    attributes = {name: repr(value) for name, value in vars(pipe).items() if not isinstance(value, nn.Module)}
    return {**attributes, "scheduler": repr(sorted(vars(pipe.scheduler).items()))}
