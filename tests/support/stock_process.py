"""Run by tests in a process of its own: diffusers alone loads LoRA files into tiny pipelines and runs their denoisers.

    python stock_process.py jobs.json result.safetensors

A job names a pipeline class, its denoisers (component, name in `TINY`, seed), what to load with which options, and
the component whose output is asked for. This package must never be imported here, and that is checked at the end.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
from tiny_denoisers import TINY


def pipeline_of(name: str, components: dict[str, Any]) -> Any:
    """A pipeline of just these components; whatever else it has is None."""
    kind = getattr(diffusers, name)
    parameters = inspect.signature(kind.__init__).parameters.items()
    needed = [key for key, value in parameters if key != "self" and value.default is inspect.Parameter.empty]
    return kind(**{**dict.fromkeys(needed), **components})


def tiny_named(name: str) -> Any:
    """A row of the table of tiny denoisers."""
    return next(tiny for tiny in TINY if tiny.name == name)


def main(jobs: Path, result: Path) -> None:
    """Run all jobs and write what the denoisers predict."""
    outputs = {}
    for job in json.loads(jobs.read_text()):
        made = {component: tiny_named(name).make(seed) for component, name, seed in job["denoisers"]}
        pipe = pipeline_of(job["pipeline"], made)
        for file, options in job["loads"]:
            pipe.load_lora_weights(file, **options)
        for component, name, _ in job["denoisers"]:
            outputs[f"{job['id']}/{component}"] = tiny_named(name).run(getattr(pipe, component)).contiguous()
    safetensors.torch.save_file(outputs, result)
    assert not any(name.startswith("unlearning") for name in sys.modules), "this process must know diffusers alone"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
