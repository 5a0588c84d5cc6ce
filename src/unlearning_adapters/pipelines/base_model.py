"""The base of a pipeline: what adapters and reports call the model that was edited."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def base_model_of(pipe: Any) -> str:
    """Return the Hub id of a pipeline; of a local folder only its name, since files are shared and paths are private.

    Args:
        pipe: A pipeline or a model with a `config`.

    Returns:
        "" if the pipeline does not know where it came from.
    """
    name = _name_or_path(pipe)
    path = Path(name)
    local = path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.exists()
    return path.name if local else name


def base_revision_of(network: Any) -> str:
    """Return the commit of the base: a model from the Hub remembers its folder in the cache, `snapshots/<commit>`."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})(?![0-9a-f])", _name_or_path(network))
    return commit[1] if commit else ""


def _name_or_path(component: Any) -> str:
    config: Any = getattr(component, "config", None)
    name = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", "")
    return str(name or "")
