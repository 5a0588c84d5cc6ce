"""The model card of an adapter: front matter that the Hub reads, and plain words, with no number that was not measured.

The body is `templates/card.md`. Each of its sections stands between two comments; on a card that somebody edited, only
what stands between them is renewed.
"""

import html
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.adapter.source import REPOSITORY
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import ConfigError

from .measured import RATES, Measured, card_results

# Small models of this project, which are no repositories of the Hub: their loader, and what a card calls them.
LOADERS = {
    "shapeworld": "load_shapeworld",
    "shapeworld-language": "load_shapeworld_language",
    "castworld": "load_castworld",
}
TITLES = {
    "shapeworld": "ShapeWorld (the small model in the package unlearning-adapters)",
    "shapeworld-language": "ShapeWorld in real language (the small model in the package unlearning-adapters)",
    "castworld": "CastWorld (the small model in the repository of unlearning-adapters)",
}
PLACEHOLDER = "your-name/your-adapter"
TAGS = ("diffusers", "lora", "unlearning", "concept-erasure")
ORDER = ["library_name", "pipeline_tag", "base_model", "base_model_relation", "license", "tags", "widget"]


def render_card(
    info: AdapterInfo,
    repository: str = PLACEHOLDER,
    *,
    sites: int | None = None,
    gains: Collection[float] = (),
    shrinkage: float = 0.0,
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
        shrinkage: How far a stack of it and others leaves the exact joint edit, 0 to 1.
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
    measurement = None if result is None else Measured.from_result(result, info.method)
    body = _template().render(
        info=info,
        repository=Markup(repository),
        base=_base(info),
        base_repository=Markup(info.base_model) if REPOSITORY.fullmatch(info.base_model) else None,
        loader=LOADERS.get(info.base_model),
        sites=sites,
        gains=gains,
        gain_span=" to ".join(dict.fromkeys(f"{gain:.3g}" for gain in (min(gains), max(gains)))) if gains else "",
        shrinkage=shrinkage,
        measured=measurement,
        rates={rate: Markup(title) for rate, title in RATES.items()},
        concept=concept,
        buildable=Markup(info.concept if re.fullmatch(r"[\w.-]+", info.concept) else "CONCEPT"),
        gallery=bool(widget),
    )
    front = _front_matter(info, repository, measurement, license, widget)
    return f"---\n{front.to_yaml(original_order=ORDER)}\n---\n\n{body}"


def escape(text: object) -> str:
    """Return text of unknown origin as one line of Markdown that shows it and does nothing: no tag, link or heading.

    It is the one rule of the template: every value passes through it, except what is `Markup`.
    """
    if isinstance(text, Markup):
        return text
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line)


def pipeline_tag(info: AdapterInfo) -> str:
    """Return the task under which the Hub lists an adapter."""
    return "image-to-video" if "ImageToVideo" in info.pipeline else "text-to-video"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md")


def _front_matter(
    info: AdapterInfo,
    repository: str,
    measured: Measured | None,
    license: str | None,
    widget: Sequence[tuple[str, str]],
) -> ModelCardData:
    task, on_hub = pipeline_tag(info), REPOSITORY.fullmatch(info.base_model) is not None
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        base_model=info.base_model if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        license=license,
        tags=[*TAGS, task, "template:diffusion-lora"],
        widget=[{"text": text, "output": {"url": path}} for text, path in widget] or None,
        model_name=None if measured is None else repository.split("/")[1],
        eval_results=None if measured is None else card_results(info, measured, task),
    )


def _base(info: AdapterInfo) -> str:
    """Return the name of the base in Markdown."""
    if info.base_model in TITLES:
        return Markup(TITLES[info.base_model])
    return info.base_model or info.pipeline or "its base model"
