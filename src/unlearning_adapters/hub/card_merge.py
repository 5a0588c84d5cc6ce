"""`merge_card` renews our sections of a model card that somebody edited, and keeps every other word of it."""

import re
from typing import Any

import yaml
from huggingface_hub import CardData, RepoCard

from unlearning_adapters.errors import ConfigError

from .measured import DATASET

FACTS = ("library_name", "pipeline_tag", "base_model", "base_model_relation")  # of the file; renewed each time

_SECTION = re.compile(
    r"<!-- unlearning-adapters: begin (?P<name>[a-z]+) -->.*?<!-- unlearning-adapters: end (?P=name) -->", re.DOTALL
)


def merge_card(existing: str, rendered: str) -> str:
    """Renew the sections of this package in a card, and keep all other text.

    Front matter: the facts of the file and our measured results are renewed, tags are added, and other keys stay; a key
    that is missing is added. Body: sections between our comments are replaced; one that was taken out stays out. A card
    without any of them keeps its text, and ours follows it.

    Args:
        existing: The card that is on the Hub.
        rendered: What `render_card` returned.

    Returns:
        The merged card; merging again changes nothing.

    Raises:
        ConfigError: If the front matter of the existing card is not a YAML mapping.
    """
    card, new = read_card(existing), RepoCard(rendered)
    sections = {match["name"]: match[0] for match in _SECTION.finditer(new.text)}
    if _SECTION.search(card.text):
        body = _SECTION.sub(lambda match: sections.get(match["name"], match[0]), card.text)
    else:
        body = f"{card.text.rstrip()}\n\n{new.text.lstrip()}"
    card.text = f"\n{body.lstrip()}"
    card.data = CardData(**_merge_front(card.data.to_dict(), new.data.to_dict()))
    return str(card)


def read_card(text: str) -> RepoCard:
    """Return a card with its front matter, which may be missing.

    Raises:
        ConfigError: If the front matter is not a YAML mapping.
    """
    text = text.replace("\r\n", "\n")
    try:
        return RepoCard(text if text.lstrip().startswith("---") else f"---\n\n---\n{text}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"The front matter of the card is not a YAML mapping: {reason}. Correct it, then push again."
        ) from error


def _merge_front(front: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in front.items() if key not in FACTS or key in new}
    for key, value in new.items():
        if key in (*FACTS, "widget") or key not in merged:
            merged[key] = value
    merged["tags"] = list(dict.fromkeys([*_as_list(front.get("tags")), *new.get("tags", [])]))
    results = [entry for entry in _as_list(front.get("model-index")) if not _is_ours(entry)]
    merged["model-index"] = [*results, *new.get("model-index", [])] or None  # None is left out
    return merged


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _is_ours(entry: Any) -> bool:
    results = entry.get("results") if isinstance(entry, dict) else None
    sets = [item.get("dataset") for item in _as_list(results) if isinstance(item, dict)]
    return any(isinstance(item, dict) and item.get("type") == DATASET for item in sets)
