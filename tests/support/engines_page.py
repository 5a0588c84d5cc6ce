"""The page docs/engines.md: what engines read of our files, from the tables and from what the tests of engines found.

python tests/support/engines_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unlearning_adapters.export.engines import ENGINES, Engine
from unlearning_adapters.export.layouts import LAYOUTS
from unlearning_adapters.export.names.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "engines.md"
RESULTS = ROOT / "tests" / "engines" / "results.json"
TEMPLATE = Path(__file__).with_suffix(".md")
MORE = {
    "bfloat16": "bfloat16",
    "float8": "float8",
    "experts": "two experts",
    "undo": "undo",
    "nodes": "our nodes",
    "beneath_loras": "beside a LoRA that reads the concept",
    "float8_nodes": "our nodes on float8",
    "gguf_nodes": "our nodes on GGUF",
}


def render() -> str:
    """Return the page."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [_section(engine, results.get(engine.name, {})) for engine in ENGINES.values()]
    parts.append(_peft(results.get("peft", {})))
    layouts = "\n".join(f"| `{name}` | {layout.summary} |" for name, layout in LAYOUTS.items())
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("{results}", "\n".join(parts)).replace("{layouts}", layouts)


def _section(engine: Engine, results: dict[str, dict[str, Any]]) -> str:
    files = {"high_noise": "HIGH.safetensors", "low_noise": "LOW.safetensors"}
    example = engine.instructions(files if engine.experts else {"": "FILE.safetensors"})
    lines = [f"### {engine.title} {engine.version}", ""]
    lines += [f"`--engine {engine.name}`. {_experts(engine)} Undo: {engine.undo}. Alpha: {engine.alpha}.", ""]
    lines += ["```text", *example.splitlines(), "```", ""]
    if engine.not_run:
        lines += [f"Where it was read and not run: {engine.not_run}.", ""]
    lines += ["| family | layout | evidence | keys read | one adapter | stack | more |", "|---" * 7 + "|"]
    for family in FAMILIES:
        reads, facts = engine.reads.get(family), results.get(family)
        if reads is None:
            continue
        if facts is None:
            keys = "all" if reads.every else "those of its table"
            lines.append(f"| {family} | `{reads.layouts[0]}` | read, not run: `{reads.source}` | {keys} | | | |")
            continue
        more = "; ".join(f"{name}: {facts[key]}" for key, name in MORE.items() if key in facts)
        numbers = " | ".join(f"{facts[key]:.1e}" if key in facts else "" for key in ("deviation", "stack"))
        lines.append(f"| {family} | `{reads.layouts[0]}` | {facts['how']} | {facts['loads']} | {numbers} | {more} |")
    for reason in dict.fromkeys(engine.lacks.values()):
        families = ", ".join(family for family in FAMILIES if engine.lacks.get(family) == reason)
        lines.append(f"| {families} | | read: no LoRA, {reason} | none | | | |")
    return "\n".join([*lines, ""])


def _experts(engine: Engine) -> str:
    if "wan" not in engine.reads:
        return "It serves no model of two denoisers."
    return f"Wan 2.2: {engine.experts or 'one file goes to both denoisers, so fuse instead'}."


def _peft(results: dict[str, dict[str, Any]]) -> str:
    lines = ["### PEFT 0.21.2", "", "`--layout peft-folder`, read by `PeftModel.from_pretrained`.", ""]
    lines += ["| family | evidence | stack |", "|---" * 3 + "|"]
    lines += [f"| {family} | {facts['how']} | {facts['stack']:.1e} |" for family, facts in results.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
