"""The main job from end to end on ShapeWorld: build from five pairs, attach, fuse, unfuse, and measure every step."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.clips import Comparison, Strip, contact_sheet, save_clip
from unlearning_adapters.concepts.concept import Concept, load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.arms.observe import Measurement, measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import FORGET, NEIGHBOUR, RATES
from unlearning_adapters.evaluation.suites.shapeworld import SHAPEWORLD, shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.pipelines.sites import denoisers
from unlearning_adapters.pipelines.spacing import evenly_spaced
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)
from unlearning_adapters.shapeworld.models.generate import GENERATION, prompt_length
from unlearning_adapters.shapeworld.models.load import load_shapeworld

PAIRS = 5
CLIPS = 24
OUTPUT = "unlearn-demo"
SEED = 2026  # of the prompts
SHOWN = 4  # prompts of each kind in the pictures, evenly drawn and not chosen by their result
ARMS = {"base": "base", "attached": "attached", "fused": "fused", "random_direction": "random direction"}

Weights = dict[str, dict[str, Tensor]]


def run_demo(
    concept: str | Path | Concept = "shapeworld-red",
    clips: int = CLIPS,
    output: str | Path = OUTPUT,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Make ShapeWorld forget a concept, and measure and show what was forgotten and what was kept.

    The adapter is built from the concept's first five pairs, saved, and loaded from its file. The same prompts and
    seeds go through four arms: the base, the attached adapter, the fused adapter, and the control, a random direction
    at the same sites with the same strength. The prompts are held out: neither model nor builder has seen them.

    Args:
        concept: A shipped ShapeWorld concept ("red", "shapeworld-left"), a YAML file with a `target`, or a `Concept`.
        clips: Number of prompts that name the concept, and of prompts that name its neighbours.
        output: Folder of the clips, the contact sheet, the adapter and `result.json`.
        progress: Whether to show progress bars.
        settings: Arguments of the pipeline's call that replace those of `GENERATION`.

    Returns:
        What `result.json` holds: "concept", "n" (equal to `clips`), for each arm its rates with counts and 95 %
        intervals, "attached_equals_fused" (largest absolute difference of the latents of these two arms),
        "unfuse_bit_exact" (fusing changed the weight of each site and nothing else, and unfusing restored the whole
        denoiser bit for bit), "adapter_bytes", and "seconds".

    Raises:
        ConceptError: If there is no such concept, or it has no target that the judge can see.
        ConfigError: If `clips` is below 1.

    Example:
        >>> run_demo("shapeworld-left", clips=8)["attached"]["concept_rate"]
    """
    target_concept = concept if isinstance(concept, Concept) else load_concept(concept)
    target = SHAPEWORLD.value_of(target_concept)
    if clips < 1:
        raise ConfigError(f"Expected `clips` to be at least 1, but got {clips}.")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    call = {**GENERATION, **settings}
    suite = shapeworld_suite(target, clips, SEED, paraphrases=False, generation=call)
    pipe, seconds, length = load_shapeworld(), dict[str, float](), prompt_length(call)
    arms: dict[str, Measurement] = {}

    def run(name: str) -> None:
        arms[name] = measure(pipe, suite, [shapes()], progress=ARMS[name] if progress else None, latents=True)

    run("base")
    with _timed(seconds, "build"):
        adapter = build_adapter(pipe, target_concept, _config(target_concept), progress=progress, call_kwargs=length)
    file = adapter.save_pretrained(folder / "adapter")
    exact = _run_edited(pipe, file.parent, adapter.sites, run, seconds)
    control = _config(target_concept, method="random", strength=adapter.strength)
    load_unlearning_adapter(pipe, build_adapter(pipe, target_concept, control, progress=False, call_kwargs=length))
    run("random_direction")
    unload_unlearning_adapters(pipe)

    seconds["generate_per_clip"] = arms["base"].seconds / len(arms["base"].clips)
    result = {
        "concept": target_concept.name,
        "n": clips,
        **{name: arms[name].rates.to_dict(arms["base"].rates) for name in ARMS},
        "attached_equals_fused": largest_difference(arms["attached"].latents, arms["fused"].latents),
        "unfuse_bit_exact": exact,
        "adapter_bytes": file.stat().st_size,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    write_pictures(folder, target_concept, suite, arms)
    (folder / "result.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return result


def largest_difference(one: Tensor | None, other: Tensor | None) -> float | None:
    """Return the largest absolute difference of two tensors; None if one is missing, or it is not finite."""
    if one is None or other is None:
        return None
    value = float((one.double() - other.double()).abs().max())
    return value if math.isfinite(value) else None


def format_demo(result: Mapping[str, Any], output: str | Path) -> str:
    """Return the result of a demo as a short table for people, with the paths of what was written.

    Args:
        result: What `run_demo` returned.
        output: The folder that it wrote to.

    Returns:
        Text of several lines.
    """
    folder, seconds, difference = Path(output), result["seconds"], result["attached_equals_fused"]
    landed = sorted(result["attached"]["landing"].items(), key=lambda item: -item[1])
    landing = ", ".join(f"{value} {count}" for value, count in landed)
    times = [f"{name} {seconds[name]:.2f} s" for name in ("build", "attach", "fuse", "unfuse")]
    return "\n".join(
        (
            f"{result['concept']}: {result['n']} prompts that name it and {result['n']} that name a neighbour, "
            "held out, same seeds in each arm",
            "",
            *_table(result),
            "",
            f"shown in place of the concept: {landing or 'nothing valid'}",
            f"attached equals fused: latents differ by at most {'?' if difference is None else f'{difference:.1e}'}",
            f"unfuse is bit-exact: {'yes' if result['unfuse_bit_exact'] else 'NO'}",
            f"adapter: {result['adapter_bytes']:,} bytes",
            f"time: {', '.join(times)}, {seconds['generate_per_clip']:.2f} s per clip",
            "",
            *(str(folder / name) for name in ("contact_sheet.png", "clips", "adapter", "result.json")),
        )
    )


def _table(result: Mapping[str, Any]) -> list[str]:
    rows = [("rate [95 % interval]", *ARMS.values())]
    for rate in RATES:
        cells = [_cell(result[arm][rate], result[arm]["intervals"][rate]) for arm in ARMS]
        rows.append((rate.replace("_", " "), *cells))
    rows.append(("motion ratio", *(_cell(result[arm]["motion_ratio"]) for arm in ARMS)))
    return ["".join(f"{cell:<{22 if index == 0 else 20}}" for index, cell in enumerate(row)).rstrip() for row in rows]


def write_pictures(folder: Path, concept: Concept, suite: Suite, arms: Mapping[str, Measurement]) -> None:
    """Write clips before and after, and the contact sheet, of a few prompts of the concept and of its neighbours."""
    ((factor, value),) = suite.target.items()
    headings = {
        FORGET: ("concept", f"Prompts that name {value!r}"),
        NEIGHBOUR: ("neighbour", "Prompts that name a neighbour"),
    }
    columns: dict[str, list[Comparison]] = {}
    cases = list(suite.cases())
    for role, (kind, heading) in headings.items():
        places = [place for place, case in enumerate(cases) if case.role == role]
        for number, index in enumerate(evenly_spaced(len(places), SHOWN), start=1):
            place = places[index]
            strips = []
            for arm, label in (("base", "base"), ("attached", "unlearned")):
                clip, sample = arms[arm].clips[place], arms[arm].samples[place]
                save_clip(clip, folder / "clips" / f"{kind}-{number}-{label}.mp4")
                strips.append(Strip(label, clip, sample.labels[factor] if sample.valid else "not valid"))
            columns.setdefault(heading, []).append(Comparison(cases[place].prompt.text, tuple(strips)))
    title = f"{concept.name}: same prompt and seed before and after; grey: what the judge sees"
    contact_sheet(columns, title).save(folder / "contact_sheet.png")


def _run_edited(
    pipe: Any, folder: Path, sites: Sequence[str], run: Callable[[str], None], seconds: dict[str, float]
) -> bool:
    """Measure the attached and the fused adapter, take it off again, and tell whether unfusing was bit-exact."""
    before = _copy_weights(pipe)
    with _timed(seconds, "attach"):
        load_unlearning_adapter(pipe, folder)
    run("attached")
    with _timed(seconds, "fuse"):
        fuse_unlearning_adapters(pipe)
    fused = _copy_weights(pipe)
    run("fused")
    with _timed(seconds, "unfuse"):
        unfuse_unlearning_adapters(pipe)
    after = _copy_weights(pipe)
    unload_unlearning_adapters(pipe)
    return not _changed(before, after) and _changed(before, fused) == {f"{site}.weight" for site in sites}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _config(concept: Concept, **changes: Any) -> BuildConfig:
    return BuildConfig(pairs=min(PAIRS, len(concept.pairs)), **changes)


def _copy_weights(pipe: Any) -> Weights:
    return {
        name: {key: value.clone() for key, value in network.state_dict().items()}
        for name, network in denoisers(pipe).items()
    }


def _changed(one: Weights, other: Weights) -> set[str]:
    return {
        f"{name}.{key}"
        for name, values in one.items()
        for key, value in values.items()
        if not torch.equal(value, other[name][key])
    }


def _cell(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
