"""The command `unlearn attack`: try to bring a concept back from an edited pipeline."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import ConceptError

from .commands import SHAPEWORLD, Report, open_pipeline, read_call

ATTACKS = (
    "paraphrase", "guidance", "seeds", "embedding", "soft-prompt", "resurrection", "tampering", "video", "together",
    "stack",
)  # fmt: skip
BATCH = 16  # clips per call in the embedded world


def attack_options(command: ArgumentParser) -> None:
    """Add the options of `unlearn attack`."""
    add = command.add_argument
    add("pipeline", metavar="PIPELINE", help="'shapeworld', a local folder or a Hub repository")
    add("adapter", metavar="ADAPTER", help="an adapter file, its folder, or a Hub repository")
    add("-o", "--output", metavar="DIR", required=True, help="folder of attacks.json and attacks.md")
    add("--attack", choices=ATTACKS, action="append", help="repeat it for more (default: all that suit)")
    add("--budget", choices=("small", "medium"), default="small", help="how much each may try (default: small)")
    add("--suite", metavar="SUITE", help="a concept, or a .yaml, .jsonl or .csv file (default: the adapter's concept)")
    add("--reference", metavar="SUITE", help="a concept that was not erased (ShapeWorld has a default)")
    add("--gold", metavar="PIPELINE", help="a pipeline that was trained without the concept")
    add("--second", metavar="ADAPTER", help="another adapter, for the attack on a stack (ShapeWorld has a default)")
    add("--second-suite", metavar="SUITE", help="suite of the second adapter (default: its concept)")
    add("--detector", metavar="NAME", action="append", help="a name, or package.module:callable; repeat it for more")
    add("--call", metavar="NAME=VALUE", action="append", default=[], help="argument of the pipeline's call; repeat it")
    add("--batch", type=int, metavar="N", help="clips per call (default: 1; ShapeWorld: 16)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="number type of the weights")
    add("--device", help="where to run, such as cuda (default: a GPU if there is one)")


def run_attack(options: Namespace) -> Report:
    """Attack a pipeline with the adapter fused, and write the result."""
    from unlearning_adapters.adapter.adapter import load_adapter

    adapter = load_adapter(options.adapter)
    from unlearning_adapters.attacks.budget import find_budget
    from unlearning_adapters.attacks.run import run_attacks
    from unlearning_adapters.attacks.table import to_markdown
    from unlearning_adapters.shapeworld.models.generate import generation_of

    budget = find_budget(options.budget)
    count, steps = budget.prompts, budget.denoising_steps
    target, call, detectors = _target(str(options.suite or adapter.info.concept), count, options.detector)
    pipe = open_pipeline(options.pipeline, options.dtype, options.device)
    call = generation_of(pipe) or call
    if _value(target.concept) and steps:
        call["num_inference_steps"] = steps
    reference = options.reference or _default(target, "reference")
    data = run_attacks(
        pipe,
        adapter,
        target,
        detectors,
        options.attack,
        options.budget,
        None if reference is None else _target(reference, count, options.detector)[0],
        None if options.gold is None else open_pipeline(options.gold, options.dtype, options.device),
        _second(options, pipe, target, count),
        {**call, **read_call(options.call)},
        options.batch or (BATCH if _value(target.concept) else 1),
    )
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    text = to_markdown(data)
    (folder / "attacks.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "attacks.md").write_text(text, encoding="utf-8")
    files = [str(folder / name) for name in ("attacks.json", "attacks.md")]
    return Report({**data, "files": files}, "\n".join((text, *files)))


def _target(name: str, count: int, detector: list[str] | None) -> tuple[Any, dict[str, Any], Any]:
    """Return the target of a suite, its call arguments and its detectors."""
    from unlearning_adapters.attacks.shapeworld_target import shapeworld_target
    from unlearning_adapters.attacks.target import target_of
    from unlearning_adapters.evaluation.detectors.detector import as_detectors
    from unlearning_adapters.evaluation.evaluate import default_detectors, with_validity
    from unlearning_adapters.evaluation.suites.file import read_suite
    from unlearning_adapters.shapeworld.models.generate import GENERATION

    value = _value(name)
    if value:
        return shapeworld_target(value, count), dict(GENERATION), as_detectors(detector or ["shapes", "validity"])
    suite = read_suite(name)
    watching = with_validity(as_detectors(detector)) if detector else default_detectors(suite)
    return target_of(suite, _pairs(name), count), dict(suite.generation), watching


def _pairs(name: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a concept; none for a suite that is no concept."""
    from unlearning_adapters.concepts.concept import load_concept

    try:
        return tuple((pair.unsafe, pair.safe) for pair in load_concept(name).pairs if pair.unsafe and pair.safe)
    except ConceptError:
        return ()


def _second(options: Namespace, pipe: Any, target: Any, count: int) -> Any:
    """Return the second adapter and its target; in the embedded world one is built."""
    if options.attack is not None and "stack" not in options.attack:
        return None
    if options.second is not None:
        from unlearning_adapters.adapter.adapter import load_adapter

        adapter = load_adapter(options.second)
        return adapter, _target(str(options.second_suite or adapter.info.concept), count, options.detector)[0]
    name = _default(target, "second")
    if name is None:
        return None
    from unlearning_adapters.building.build import build_adapter
    from unlearning_adapters.concepts.concept import load_concept
    from unlearning_adapters.config import BuildConfig
    from unlearning_adapters.shapeworld.models.generate import generation_of, prompt_length

    length = prompt_length(generation_of(pipe))
    adapter = build_adapter(pipe, load_concept(name), BuildConfig(), progress=False, call_kwargs=length)
    return adapter, _target(name, count, options.detector)[0]


def _value(name: str) -> str:
    """Return the value of the embedded world that a concept is about, "" if it is none."""
    from unlearning_adapters.evaluation.suites.shapeworld import values

    value = name.removeprefix(f"{SHAPEWORLD}-")
    return value if value in values() else ""


def _default(target: Any, what: str) -> str | None:
    """Return the concept that serves as a control, or as the second of a stack, in the embedded world."""
    from unlearning_adapters.attacks.shapeworld_target import reference_value, second_value

    value = _value(target.concept)
    if not value:
        return None
    return f"{SHAPEWORLD}-{reference_value(value) if what == 'reference' else second_value(value)}"
