"""The parts of the ComfyUI node pack that know no ComfyUI, as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"
NAME = "unlearning_comfyui_pack"


def part(name: str) -> Any:
    """Return a module of the pack without its `__init__`, which imports ComfyUI."""
    package = sys.modules.setdefault(NAME, ModuleType(NAME))
    package.__path__ = [str(FOLDER)]
    return importlib.import_module(f"{NAME}.{name}")
