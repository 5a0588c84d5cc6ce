"""The tab Forget: from what is typed or picked to a concept, its lint, and an adapter."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job, collected_warnings, one_line
from unlearning_adapters.cli.app.session import Entry, Session
from unlearning_adapters.concepts.concept import Concept, list_concepts, load_concept
from unlearning_adapters.concepts.lint import Finding, lint_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, UnlearningError
from unlearning_adapters.shapeworld.models.generate import prompt_length

from .plain import build_command

BAR = "|"
WEAK, STRONG = 0.8, 1.5  # calibrated strengths outside of which a word on them helps


def concept_names(embedded: bool) -> list[str]:
    """Return the shipped concepts, those that the pipeline can show first."""
    return sorted(list_concepts(), key=lambda name: (name.startswith("shapeworld-") != embedded, name))


def typed_concept(name: str, words: str, pairs: str, neutral: str, embedded: bool) -> Concept:
    """Return the concept that somebody typed.

    Args:
        name: Its name.
        words: Its words, separated by commas.
        pairs: A pair on each line, `unsafe | safe`.
        neutral: A neutral prompt on each line; none takes a shared set.
        embedded: Whether the shared set is that of the embedded world.

    Raises:
        ConceptError: If a line is no pair, or the concept is not valid.
    """
    sides = []
    for number, line in enumerate(pairs.splitlines(), start=1):
        if line.strip():
            unsafe, bar, safe = (part.strip() for part in line.partition(BAR))
            if not (unsafe and bar and safe):
                raise ConceptError(f"Line {number} of the pairs is no pair: write `with it {BAR} without it`.")
            sides.append({"unsafe": unsafe, "safe": safe})
    shared = "shapeworld-neutral" if embedded else "shared"
    values = {
        "name": name.strip() or "my-concept",
        "words": [word.strip() for word in words.split(",") if word.strip()],
        "pairs": sides,
        "neutral": [line.strip() for line in neutral.splitlines() if line.strip()] or [shared],
    }
    return Concept.from_dict(values)


def chosen_concept(source: str, file: str | None, typed: Sequence[str], embedded: bool) -> Concept:
    """Return the concept that the form names: a shipped one, a file, or what is typed.

    Args:
        source: "shipped:NAME", "file" or "own".
        file: The file.
        typed: Name, words, pairs and neutral prompts.
        embedded: Whether the pipeline is one of the embedded world.
    """
    if source == "own":
        return typed_concept(*_fields(typed), embedded)
    if source == "file":
        if not file:
            raise ConceptError("No file was chosen. Drop a .yaml or .jsonl file.")
        return load_concept(file)
    return load_concept(source.removeprefix("shipped:"))


def _fields(typed: Sequence[str]) -> tuple[str, str, str, str]:
    name, words, pairs, neutral = typed
    return name, words, pairs, neutral


def remarks(typed: Sequence[str], embedded: bool) -> str:
    """Return what is doubtful in a typed concept, as HTML; an error while it is still typed is a remark, too."""
    if not typed[2].strip():
        return "<p class='ua-note'>Write at least one pair; five in different scenes are a good number.</p>"
    try:
        findings = lint_concept(typed_concept(*_fields(typed), embedded))
    except UnlearningError as error:
        findings = [Finding(True, one_line(error))]
    # Held-out prompts and neighbours are for the evaluation, and this form has no field for them.
    notable = [item for item in findings if "of `evaluation`" not in item.text and "of `neighbours`" not in item.text]
    if not notable:
        return "<p class='ua-good'>Nothing to remark.</p>"
    rows = (f"<li class='ua-{'bad' if item.error else 'doubt'}'>{escape(item.text)}</li>" for item in notable)
    return f"<ul class='ua-remarks'>{''.join(rows)}</ul>"


def build(bench: Bench, session: Session, concept: Concept, settings: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Build an adapter, and keep it on the page.

    Args:
        bench: The pipeline.
        session: The page.
        concept: What is forgotten.
        settings: Fields of `BuildConfig`.
        job: Who asks.

    Returns:
        "name" on the page, "adapter", "warnings" and "seconds".
    """
    bench.check_has_prompt()
    start, texts = time.perf_counter(), list[str]()
    config = BuildConfig(**settings)
    call = bench.call if config.scope == "concept" else prompt_length(bench.call)
    with bench.taken(job) as pipe, collected_warnings(texts):
        adapter = build_adapter(pipe, concept, config, progress=False, call_kwargs=call)
    job.tick()
    name = session.add(Entry(adapter, concept, texts, command=build_command(bench, concept, settings)))
    return {"name": name, "adapter": adapter, "warnings": texts, "seconds": time.perf_counter() - start}


def description(built: Mapping[str, Any]) -> str:
    """Return what was found by a build, as HTML: sites, strength and warnings in plain words."""
    adapter: UnlearningAdapter = built["adapter"]
    facts = {
        "Concept": f"<b>{escape(str(built['name']))}</b>",
        "Strength": f"{adapter.strength:.2f} {_about_strength(adapter.strength)}",
        "Sites": f"{len(adapter.sites)} layers, rank {adapter.rank}: {_site_names(adapter)}",
        "Method": escape(adapter.info.method),
        "Time": f"{built['seconds']:.1f} s",
    }
    rows = "".join(f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
    warned = "".join(f"<li class='ua-doubt'>{escape(text)}</li>" for text in built["warnings"])
    tail = f"<ul class='ua-remarks'>{warned}</ul>" if warned else "<p class='ua-good'>No warning.</p>"
    return f"<table class='ua-facts'>{rows}</table>{tail}<p class='ua-note'>Look at it in the tab Compare.</p>"


def _about_strength(strength: float) -> str:
    if strength < WEAK:
        return "(calibrated on the pairs; a weak one: they differ in how they say it)"
    if strength > STRONG:
        return "(calibrated on the pairs; a strong one: look at other prompts as well)"
    return "(1 removes the direction; calibrated on the pairs unless you gave it)"


def _site_names(adapter: UnlearningAdapter) -> str:
    first, last = adapter.sites[0], adapter.sites[-1]
    return f"<code>{escape(first)}</code> to <code>{escape(last)}</code>" if first != last else f"<code>{first}</code>"
