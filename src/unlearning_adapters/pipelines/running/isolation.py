"""A private copy of a pipeline for a run: the same networks, and what a run changes beside them as copies.

Other threads may call the user's pipeline meanwhile, which keeps its scheduler, its guiders and its attributes.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from unlearning_adapters.pipelines.sites import denoisers

from .call_lock import reading

# What accelerate's offloading keeps on a pipeline and makes anew after each call.
OFFLOADING = ("_all_hooks", "_offload_device", "_offload_gpu_id")
_one_seed = threading.RLock()  # a process has one global generator, so that runs in several threads take turns


@contextmanager
def own_pipeline(pipe: Any, seed: int, *, guidance: bool = False) -> Iterator[Any]:
    """Make a pipeline that shares another one's networks and nothing that a run changes; guidance is off by default.

    Torch's global generators are seeded, for pipelines that use them in spite of `generator`, and restored, as are the
    attention processors of networks that swap them for a run. No other thread changes the denoisers meanwhile.

    Args:
        pipe: A pipeline.
        seed: Seed of the global generators.
        guidance: Whether guiders guide as they do for the user of the pipeline.

    Yields:
        The pipeline to call.
    """
    clone = copy.copy(pipe)
    vars(clone)["_progress_bar_config"] = {"disable": True}
    with ExitStack() as stack:
        stack.enter_context(reading(denoisers(pipe).values()))  # first: whoever waits for a change holds nothing else
        stack.enter_context(own_random_state(seed))
        for name, component in pipe.components.items():
            if hasattr(component, "set_attn_processor"):
                stack.enter_context(_same_processors(component))
            if hasattr(component, "set_timesteps"):
                vars(clone)[name] = _own_scheduler(component)
            elif hasattr(component, "prepare_models") and hasattr(component, "disable"):
                vars(clone)[name] = _own_guider(component, modular=hasattr(pipe, "blocks"), guidance=guidance)
        try:
            yield clone
        finally:
            for name in OFFLOADING:
                if name in vars(pipe) and name in vars(clone):
                    vars(pipe)[name] = vars(clone)[name]


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seed torch's global generators, and restore them; one thread at a time."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with _one_seed, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def _same_processors(network: Any) -> Iterator[None]:
    """Restore attention processors: some pipelines swap them for a run, and swap them back in their last lines."""
    before = dict(network.attn_processors)
    try:
        yield
    finally:
        if any(before.get(name) is not processor for name, processor in network.attn_processors.items()):
            network.set_attn_processor(before)


def _own_scheduler(scheduler: Any) -> Any:
    clone = copy.copy(scheduler)
    vars(clone).update({name: copy.deepcopy(value) for name, value in vars(clone).items() if name != "_internal_dict"})
    return clone


def _own_guider(guider: Any, *, modular: bool, guidance: bool) -> Any:
    """Return a copy of a guider, which without guidance asks for the conditional prediction alone.

    Blocks of modular pipelines fail if their guider is disabled, for they then miss the embedding of the negative
    prompt (diffusers 0.42.1: Wan raises UnboundLocalError, LTX ValueError). There guidance starts after the last step.
    """
    clone = copy.copy(guider)
    if guidance:
        return clone
    if modular and hasattr(guider, "_start"):
        vars(clone).update(_start=1.0, _step=None, _num_inference_steps=None)
    else:
        clone.disable()
    return clone
