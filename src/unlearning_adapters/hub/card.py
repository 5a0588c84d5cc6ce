"""The model card of an adapter: front matter that the Hub reads, and plain words, with no number that was not measured.

The body is `templates/card.md`. Each of its sections stands between two comments; on a card that somebody edited, only
what stands between them is renewed.
"""

import html
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.adapter.source import REPOSITORY
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import ConfigError

from .card_merge import DATASET, join_card

SHAPEWORLD = "shapeworld"  # an embedded model, which is no repository of the Hub
LANGUAGE = "shapeworld-language"  # the other one
LOADERS = {SHAPEWORLD: "load_shapeworld", LANGUAGE: "load_shapeworld_language"}
PLACEHOLDER = "your-name/your-adapter"
TAGS = ("diffusers", "lora", "unlearning", "concept-erasure")
RATES = {
    "concept_rate": "concept shown (lower is better)",
    "context_kept": "rest of the scene right",
    "preservation": "neighbours right",
    "worst_neighbour": "worst neighbour right",
    "valid_rate": "clips that are valid",
}
ARMS = ("base", "with this adapter", "control: random direction")
NOT_MEASURED = """\
**Not measured.** Nobody has reported how well this adapter removes the concept on this base, nor what else it changes.
Measure both before you rely on it: the share of clips that show the concept, and the share of neighbours that survive,
for the base and the edited model on the same prompts and seeds, beside a random direction as the control."""


@dataclass(frozen=True)
class Cell:
    """One rate of one arm: its value, its 95 % interval, and its counts."""

    value: float
    low: float
    high: float
    hits: int
    count: int


@dataclass(frozen=True)
class Measured:
    """What a card tells of a measurement.

    Args:
        count: Number of prompts that name the concept, and of prompts that name its neighbours.
        arms: For each arm by its title, the base first, a cell per rate; None where nothing was counted.
        strength: Strength of the adapter that was measured; None if the result does not tell.
        neighbours: Number of prompts that name the concept's neighbours, if it is another one.
    """

    count: int
    arms: Mapping[str, Mapping[str, Cell | None]]
    strength: float | None = None
    neighbours: int | None = None

    @classmethod
    def from_result(cls, result: Mapping[str, Any], method: str = "ridge") -> "Measured":
        """Read the result of `run_demo`, the report of an evaluation, or one concept of `benchmarks/erasure.json`.

        Args:
            result: The dictionary, with a value, an interval and counts per rate and arm.
            method: Method of the adapter, which names its arm in a benchmark.

        Raises:
            ConfigError: If the base, the adapter, the control, or one of their rates is missing or not a number, or the
                report says of itself that it is void.
        """
        if isinstance(result, Mapping) and result.get("status") == "void":
            reasons = " ".join(map(str, result.get("reasons", ())))
            raise ConfigError(f"The measured result is void and cannot go on a card: {reasons[:300]}")
        try:
            benchmark = "arms" in result
            edited = "edited" if "schema" in result else method
            names = ("base", edited, "random") if benchmark else ("base", "attached", "random_direction")
            arms = result["arms"] if benchmark else result
            table = {
                title: {rate: _read_cell(arms[name], rate) for rate in RATES}
                for name, title in zip(names, ARMS, strict=True)
            }
            strength = arms[names[1]].get("strength")
            count = int(result["clips" if benchmark else "n"])
            near = result.get("neighbours")
            return cls(count, table, None if strength is None else float(strength), near if near is None else int(near))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"The measured result cannot go on a card: {type(error).__name__} {error}. Give what run_demo "
                f"returned, or one concept of benchmarks/erasure.json with the arms base, {method} and random."
            ) from error


def render_card(
    info: AdapterInfo,
    repository: str = PLACEHOLDER,
    *,
    sites: int | None = None,
    gains: Collection[float] = (),
    result: Mapping[str, Any] | None = None,
    concept: Concept | None = None,
    license: str | None = None,
    widget: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the text of a model card.

    Args:
        info: The record of the adapter.
        repository: Its repository on the Hub, "org/name".
        sites: Number of sites that it edits; None if no file is built yet, and the card says how to build it.
        gains: By what its sites multiply the strength, for those that do not take it as it is.
        result: What was measured, see `Measured.from_result`; None makes a card that says "not measured".
        concept: The concept, for its words and neighbours.
        license: Licence of the adapter, such as "apache-2.0"; None leaves it open. That of the base may apply.
        widget: Prompts with the paths of their clips in the repository.

    Returns:
        Markdown with YAML front matter. What comes from a file is escaped.

    Raises:
        ConfigError: If the repository is no "org/name", or the result is not that of a measurement.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"Expected a Hub repository as 'org/name', but got {repository!r}.")
    measured = None if result is None else Measured.from_result(result, info.method)
    body = Template(_template()).substitute(
        concept=escape(info.concept),
        summary=_summary(info, bool(widget)),
        removes=_removes(info, concept),
        measured=NOT_MEASURED if measured is None else _measured(info, measured),
        strength=_strength(info, sites, gains),
        load=_load(info, repository),
        stock=_stock(info),
        repository=repository,
        details=_details(info, sites),
    )
    return join_card(_front_matter(info, repository, measured, license, widget), body)


def escape(text: str) -> str:
    """Return text of unknown origin as one line of Markdown that shows it and does nothing: no tag, link or heading."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line)


def pipeline_tag(info: AdapterInfo) -> str:
    """Return the task under which the Hub lists an adapter."""
    return "image-to-video" if "ImageToVideo" in info.pipeline else "text-to-video"


@cache
def _template() -> str:
    return (files(__package__) / "templates" / "card.md").read_text(encoding="utf-8")


def _front_matter(
    info: AdapterInfo,
    repository: str,
    measured: Measured | None,
    license: str | None,
    widget: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    tag = pipeline_tag(info)
    front: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": tag}
    if REPOSITORY.fullmatch(info.base_model):
        front |= {"base_model": info.base_model, "base_model_relation": "adapter"}
    front |= {"license": license} if license else {}
    front["tags"] = [*TAGS, tag, "template:diffusion-lora"]
    if widget:
        front["widget"] = [{"text": text, "output": {"url": path}} for text, path in widget]
    if measured:
        front["model-index"] = _model_index(info, repository.split("/")[1], measured)
    return front


def _model_index(info: AdapterInfo, name: str, measured: Measured) -> list[dict[str, Any]]:
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    base, edited, _ = measured.arms.values()
    results = [
        EvalResult(
            task_type=pipeline_tag(info),
            dataset_type=DATASET,
            dataset_name=f"held-out prompts of {' '.join(info.concept.split())} and its neighbours",
            metric_type=rate,
            metric_name=title,
            metric_value=round(cell.value, 4),
            metric_args={
                "interval_95": [cell.low, cell.high],
                "count": cell.count,
                "base": None if (before := base[rate]) is None else round(before.value, 4),
            },
        )
        for rate, title in RATES.items()
        if (cell := edited[rate]) is not None
    ]
    index: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    return index


def _summary(info: AdapterInfo, gallery: bool) -> str:
    text = (
        f"Makes {_base(info)} forget one concept, **{escape(info.concept)}**, without training: a few directions are\n"
        "taken out of what some of its layers read. It is one file, it can be switched off exactly, and stock\n"
        "diffusers loads it as a LoRA."
    )
    return f"{text}\n\n<Gallery />" if gallery else text


def _removes(info: AdapterInfo, concept: Concept | None) -> str:
    removed = escape(info.description or info.concept)
    lines = [f"- It removes: {removed}{'' if removed.endswith('.') else '.'}"]
    if concept is not None and concept.words:
        lines.append(f"- Words of the concept: {', '.join(map(escape, concept.words))}.")
    lines.append("- It does not remove other concepts, and it judges nothing: what no pair showed stays as it is.")
    if concept is not None and concept.neighbours:
        shown = "; ".join(escape(prompt) for prompt in concept.neighbours[:4])
        lines.append(f"- Near things that are meant to survive, such as: {shown}.")
    return "\n".join(lines)


def _measured(info: AdapterInfo, measured: Measured) -> str:
    rows = [["rate [95 % interval] (counts)", *measured.arms], ["---"] * (1 + len(measured.arms))]
    rows += [[title, *(_show_cell(arm[rate]) for arm in measured.arms.values())] for rate, title in RATES.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    strength = info.strength if measured.strength is None else measured.strength
    near = measured.count if measured.neighbours is None else measured.neighbours
    text = (
        f"Measured at strength {strength:.3g} on {measured.count} held-out prompts that name the concept and "
        f"{near} that name its\nneighbours, with the same seeds in each arm. The control removes a random "
        f"direction at the same sites. Intervals are Wilson's.\n\n{table}"
    )
    if info.base_model not in LOADERS:
        return text
    return (
        f"{text}\n\nThe base is ShapeWorld, a tiny model of moving shapes. These numbers say that the method works "
        "there;\nthey say nothing of a large model."
    )


def _read_cell(arm: Mapping[str, Any], rate: str) -> Cell | None:
    if arm[rate] is None:
        return None
    (low, high), (hits, count) = arm["intervals"][rate], arm["counts"][rate]
    return Cell(float(arm[rate]), float(low), float(high), int(hits), int(count))


def _show_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}] ({cell.hits}/{cell.count})"


def _strength(info: AdapterInfo, sites: int | None, gains: Collection[float]) -> str:
    if sites is None:
        return "The builder calibrates the default strength on the pairs and writes it into the file."
    text = f"The default is {info.strength:.3g}, which is written in the file."
    if gains:
        span = " to ".join(dict.fromkeys(f"{gain:.3g}" for gain in (min(gains), max(gains))))
        text += f" {len(gains)} of {sites} sites take {span} times that, whatever it is."
    return text


def _load(info: AdapterInfo, repository: str) -> str:
    if loader := LOADERS.get(info.base_model):
        first = f"from unlearning_adapters import {loader}\n\npipe = {loader}()"
    else:
        source = _base_source(info, "path/to/the/base")
        first = (
            "import unlearning_adapters  # adds the verbs to diffusers' pipelines\n"
            "from diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{source}")'
        )
    return f'{first}\npipe.load_unlearning_adapter("{repository}")'


def _stock(info: AdapterInfo) -> str:
    text = (
        "The result is the same up to rounding. As an ordinary LoRA it can be switched off by accident: loading\n"
        "another LoRA, `set_adapters`, `disable_lora` and a LoRA scale of 0 all silence it."
    )
    if len(info.denoisers) > 1:
        first, *others = map(escape, info.denoisers)
        text += (
            f" It then edits {first} only, and {', '.join(others)} still knows the concept: use this package for both."
        )
    return text


def _details(info: AdapterInfo, sites: int | None) -> str:
    denoisers = [f"{escape(name)} ({escape(kind)})" for name, kind in info.denoisers.items()]
    rows = {
        "method": escape(info.method),
        "base": f"{_base(info)}{f' at {escape(info.base_revision)}' if info.base_revision else ''}",
        "pipeline": escape(info.pipeline),
        "denoisers": ", ".join(denoisers),
        "sites": "" if sites is None else str(sites),
        "SHA-256 of the pairs": escape(info.pairs_hash),
        "versions": ", ".join(f"{escape(name)} {escape(number)}" for name, number in info.versions.items()),
    }
    lines = [f"- {name}: {value}" for name, value in rows.items() if value]
    if sites is None:
        concept = info.concept if re.fullmatch(r"[\w.-]+", info.concept) else "CONCEPT"
        source = _base_source(info, SHAPEWORLD)
        lines.append(f"- no file is published with this card; build it: `unlearn build {source} {concept} -o DIR`")
    return "\n".join(lines)


def _base(info: AdapterInfo) -> str:
    if info.base_model in LOADERS:
        name = "ShapeWorld" if info.base_model == SHAPEWORLD else "ShapeWorld in real language"
        return f"{name} (the small model in the package unlearning-adapters)"
    return escape(info.base_model or info.pipeline or "its base model")


def _base_source(info: AdapterInfo, otherwise: str) -> str:
    """Return the base's repository, which is safe to write in code, or something else."""
    return info.base_model if REPOSITORY.fullmatch(info.base_model) else otherwise
