"""Where a node takes its adapter from: a file, or a repository on the Hub; knows no ComfyUI."""

from __future__ import annotations

from pathlib import Path

import torch

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.errors import ConfigError


def open_adapter(file: str | Path | None, hub_id: str) -> UnlearningAdapter:
    """Return an adapter of a repository on the Hub, or of a file if no repository is named.

    Args:
        file: The file, None if none is chosen.
        hub_id: "org/name" or "org/name@revision", with a branch, a tag or a commit; "" for a file.

    Raises:
        ConfigError: If neither is given, or there is nothing before or after the "@".
        AdapterNotFoundError: If there is no such file, or the Hub cannot give it.
        AdapterFileError: If it is not a valid adapter.
    """
    text = hub_id.strip()
    name, at, revision = (part.strip() for part in text.partition("@"))
    if text and not (name and (revision or not at)):
        raise ConfigError(f"Expected `hub_id` to be org/name or org/name@revision, but got {text!r:.80}.")
    if not text and file is None:
        raise ConfigError("No adapter is chosen. Choose a file of models/unlearning_adapters, or give a Hub id.")
    with torch.inference_mode(False):  # tensors made in inference could not be used elsewhere
        return load_adapter(name, revision=revision or None) if text else load_adapter(str(file))
