"""Renew our sections of a model card that somebody edited, and keep every other word of it."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from unlearning_adapters.errors import ConfigError

DATASET = "unlearning-adapters"  # type of the data set of our own entries in `model-index`
FACTS = ("library_name", "pipeline_tag", "base_model", "base_model_relation")  # of the file; renewed each time

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(
    r"<!-- unlearning-adapters: begin (?P<name>[a-z]+) -->.*?<!-- unlearning-adapters: end (?P=name) -->", re.DOTALL
)


def merge_card(existing: str, rendered: str) -> str:
    """Renew our sections of a card, and keep all else that is written in it.

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
    (front, body), (new_front, new_body) = split_card(existing), split_card(rendered)
    sections = {match["name"]: match[0] for match in _SECTION.finditer(new_body)}
    if _SECTION.search(body):
        body = _SECTION.sub(lambda match: sections.get(match["name"], match[0]), body)
    else:
        body = f"{body.rstrip()}\n\n{new_body.lstrip()}"
    return join_card(_merge_front(front, new_front), body)


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Return the front matter and the body of a card, or raise `ConfigError` if the first is not a YAML mapping."""
    match = _FRONT.match(card)
    if match is None:
        return {}, card
    try:
        front = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"The front matter of the card is not YAML: {reason}. Correct it, then push again."
        ) from error
    if front is not None and not isinstance(front, dict):
        raise ConfigError(
            f"The front matter of the card is a {type(front).__name__}, not a mapping. Correct it, then push again."
        )
    return front or {}, card[match.end() :]


def join_card(front: Mapping[str, Any], body: str) -> str:
    """Return a card of front matter and body."""
    text = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---\n\n{body.lstrip()}"


def _merge_front(front: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in front.items() if key not in FACTS or key in new}
    for key, value in new.items():
        if key in (*FACTS, "widget") or key not in merged:
            merged[key] = value
    merged["tags"] = list(dict.fromkeys([*_as_list(front.get("tags")), *new.get("tags", [])]))
    index = [entry for entry in _as_list(front.get("model-index")) if not _is_ours(entry)]
    index += new.get("model-index", [])
    if index:
        merged["model-index"] = index
    else:
        merged.pop("model-index", None)
    return merged


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _is_ours(entry: Any) -> bool:
    results = entry.get("results") if isinstance(entry, dict) else None
    sets = [item.get("dataset") for item in _as_list(results) if isinstance(item, dict)]
    return any(isinstance(item, dict) and item.get("type") == DATASET for item in sets)
