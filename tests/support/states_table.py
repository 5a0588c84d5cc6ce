"""Writes the table of states and verbs in docs/running.md: each verb is really called in each state.

To write it: `PYTHONPATH=src:tests/support python tests/support/states_table.py`.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import tiny
import torch
from planted_words import CONCEPT, planted_pipeline

from planted import bits, lora_that_reads, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.errors import UnlearningError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "running.md"
BEGIN, END = "<!-- states: written by tests/support/states_table.py -->", "<!-- end of states -->"
CPU = torch.device("cpu")


@cache
def adapter(name: str, seed: int, layers: int) -> UnlearningAdapter:
    return planted(planted_pipeline(layers=layers), name, seed=seed)


def load(pipe: Any, name: str = "one", seed: int = 3) -> None:
    pipe.load_unlearning_adapter(adapter(name, seed, len(pipe.transformer.blocks)), name)


def load_lora(pipe: Any) -> None:
    factors = lora_that_reads(adapter("one", 3, len(pipe.transformer.blocks)), planted_pipeline())
    pipe.load_lora_weights(factors, adapter_name="style")


def quantise(pipe: Any) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(pipe.transformer, weights=qint8, include="*attn2*")
    freeze(pipe.transformer)


def offload_to_disk(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level", offload_to_disk_path=tempfile.mkdtemp()
    )


def compile_it(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")


Step = Callable[[Any], Any]
ATTACHED: tuple[Step, ...] = (load,)
FUSED: tuple[Step, ...] = (load, lambda pipe: pipe.fuse_unlearning_adapters())
STATES: dict[str, tuple[Step, ...]] = {
    "no adapter": (),
    "attached": ATTACHED,
    "two attached": (load, lambda pipe: load(pipe, "two", 4)),
    "disabled": (load, lambda pipe: pipe.disable_unlearning_adapters()),
    "fused": FUSED,
    "one fused, one attached": (*FUSED, lambda pipe: load(pipe, "two", 4)),
    "attached, inside of `with`": (load, lambda pipe: pipe.opened.enter_context(pipe.unlearning_adapters("one", 0.5))),
    "attached, a LoRA attached": (load, load_lora),
    "attached, a LoRA fused": (load, load_lora, lambda pipe: pipe.fuse_lora()),
    "fused, a LoRA attached": (*FUSED, load_lora),
    "fused, a LoRA fused": (*FUSED, load_lora, lambda pipe: pipe.fuse_lora()),
    "attached, a LoRA fused and taken out": (load, load_lora, lambda p: p.fuse_lora(), lambda p: p.unfuse_lora()),
    "attached, offloaded to the CPU": (load, lambda pipe: accelerate.cpu_offload(pipe.transformer, CPU)),
    "fused, offloaded to the CPU": (*FUSED, lambda pipe: accelerate.cpu_offload(pipe.transformer, CPU)),
    "attached, offloaded to files": (load, offload_to_disk),
    "fused, offloaded to files": (*FUSED, offload_to_disk),
    "attached, quantised (quanto)": (load, quantise),
    "fused, then quantised": (*FUSED, quantise),
    "attached, compiled": (load, compile_it),
    "fused, compiled": (*FUSED, compile_it),
}


def scoped(pipe: Any) -> None:
    with pipe.unlearning_adapters(["one"], 0.5):
        run(pipe)


VERBS: dict[str, Step] = {
    "load": lambda pipe: load(pipe, "new", 5),
    "set": lambda pipe: pipe.set_unlearning_adapters("one", 0.5),
    "`with`": scoped,
    "disable": lambda pipe: pipe.disable_unlearning_adapters(),
    "delete": lambda pipe: pipe.delete_unlearning_adapters("one"),
    "unload": lambda pipe: pipe.unload_unlearning_adapters(),
    "fuse": lambda pipe: pipe.fuse_unlearning_adapters(),
    "unfuse": lambda pipe: pipe.unfuse_unlearning_adapters("one"),
    "save": lambda pipe: pipe.save_unlearning_adapter(Path(tempfile.mkdtemp()) / "a.safetensors", "one"),
    "build": lambda pipe: build_adapter(pipe, CONCEPT, progress=False, call_kwargs=tiny.CALL),
}

KEEPING = ("save", "build", "`with`")  # verbs that leave a pipeline as it was


def run(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames: torch.Tensor = pipe("a red dog", **tiny.CALL, output_type="latent", generator=generator).frames
    return frames


@contextlib.contextmanager
def in_state(steps: tuple[Step, ...]) -> Iterator[Any]:
    """A pipeline in a state, which has been called once."""
    pipe = planted_pipeline(layers=1 if compile_it in steps else 2)  # what is compiled is so in proportion to its size
    with contextlib.ExitStack() as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.opened = opened
        for step in steps:
            step(pipe)
        run(pipe)
        yield pipe


def outcome(state: str, verb: str, pipe: Any, before: torch.Tensor) -> str:
    """Call a verb in a state: "yes", or the name of the error that refuses it.

    Either way the pipeline runs afterwards, and every edit acts; after a refusal it computes what it did before.
    """
    try:
        VERBS[verb](pipe)
    except UnlearningError as error:
        assert str(error).isprintable()
        assert torch.equal(bits(run(pipe)), bits(before)), f"{state}, {verb}: refused, and changed"
        return f"{type(error).__name__}"
    after = run(pipe)
    if verb in KEEPING:
        assert torch.equal(bits(after), bits(before)), f"{state}, {verb}: it changed the pipeline"
    if state != "fused, then quantised":
        assert pipe.verify_unlearning_adapters().ok, f"{state}, {verb}: {pipe.verify_unlearning_adapters()}"
    return "yes"


def row(state: str) -> list[str]:
    """The cells of a state; a pipeline that a verb had to leave as it was is used for the next verb as well."""
    cells: dict[str, str] = {}
    torch.compiler.reset()  # after a few graphs of one function torch compiles it no more, also for other states
    left = sorted(VERBS, key=lambda verb: verb not in KEEPING)
    while left:
        with in_state(STATES[state]) as pipe:
            before, unchanged = run(pipe), True
            while left and unchanged:
                verb = left.pop(0)
                cells[verb] = outcome(state, verb, pipe, before)
                unchanged = verb in KEEPING or cells[verb] != "yes"
    return [cells[verb] for verb in VERBS]


def table(rows: dict[str, list[str]]) -> str:
    """The table in Markdown; errors are numbered, and named below it."""
    errors: dict[str, str] = {}
    for cell in (cell for cells in rows.values() for cell in cells if cell != "yes"):
        errors.setdefault(cell, "abcdef"[len(errors)])
    lines = [f"| | {' | '.join(VERBS)} |", f"|---|{'---|' * len(VERBS)}"]
    lines += [f"| {state} | {' | '.join(errors.get(cell, cell) for cell in cells)} |" for state, cells in rows.items()]
    refused = ", ".join(f"{letter}: `{name}`" for name, letter in errors.items())
    return "\n".join([*lines, "", f"Refused, with nothing changed: {refused}."])


def page_with(text: str, page: str) -> str:
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    rows = {state: row(state) for state in STATES}
    PAGE.write_text(page_with(table(rows), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
