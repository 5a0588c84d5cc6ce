"""The conditions of a run: everything that determines the clips."""

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.pipelines.base_model import base_model_of
from unlearning_adapters.pipelines.sites import denoisers

from .generate import GENERATOR_DEVICE

LIBRARIES = ("unlearning-adapters", "torch", "diffusers", "transformers", "numpy")
UNSAID = {"batch": 1}  # older runs have no batches, and do not say so


def conditions_of(pipe: Any, suite: Suite, batch: int = 1) -> dict[str, Any]:
    """Return all that decides what is generated, as plain JSON types.

    Two arms, or two runs, can be compared only if these are the same. The hash does not include the versions of
    libraries.

    Args:
        pipe: The pipeline.
        suite: The suite.
        batch: Clips per call: clips made in other batches differ in their last bits.
    """
    networks = denoisers(pipe)
    first = next(iter(networks.values()))
    parameter = next(chain(first.parameters(), first.buffers(), [torch.empty(0)]))  # an engine may have none
    scheduler = getattr(pipe, "scheduler", None)
    config = {k: v for k, v in dict(getattr(scheduler, "config", {})).items() if not k.startswith("_")}
    conditions = {
        "pipeline": type(pipe).__name__,
        "model": base_model_of(pipe),
        "denoisers": {name: type(network).__name__ for name, network in networks.items()},
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "generator_device": GENERATOR_DEVICE,
        "scheduler": type(scheduler).__name__,
        "scheduler_config": json.loads(json.dumps(config, sort_keys=True, default=str)),
        "generation": json.loads(json.dumps(dict(suite.generation), sort_keys=True, default=str)),
        "suite": suite.sha256,
        "batch": batch,
    }
    return {
        **conditions,
        "hash": conditions_hash(conditions),
        "versions": {name: version_of(name) for name in LIBRARIES},
    }


def conditions_hash(conditions: Mapping[str, Any]) -> str:
    """Return a short hash of conditions, without versions and what older runs do not say."""
    relevant = {
        name: value
        for name, value in conditions.items()
        if name not in ("hash", "versions") and (name, value) not in UNSAID.items()
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]
