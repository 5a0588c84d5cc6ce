"""docs/engines.md says what the tables and the results of the engines' tests say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines_page import PAGE, RESULTS, render

from unlearning_adapters.export.engines import ENGINES, Engine
from unlearning_adapters.export.names.families import FAMILIES

VERSIONS = json.loads((RESULTS.parent / "engines.json").read_text(encoding="utf-8"))
FOUND = json.loads(RESULTS.read_text(encoding="utf-8"))
RUN = {
    "vllm_omni": "vllm-omni",
    "sd_cpp": "sd.cpp",
    "mlx_gen": "mlx-gen",
    "mlx_video": "mlx-video",
    "ltx_core": "ltx-core",
}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run python tests/support/engines_page.py"


@pytest.mark.parametrize("name", [name for name in VERSIONS if RUN.get(name, name) in FOUND])
def test_results_are_of_the_versions_of_the_table(name: str) -> None:
    engine = ENGINES[RUN.get(name, name)]
    assert any(part in engine.version for part in (VERSIONS[name]["version"], VERSIONS[name]["version"].split()[-1]))
    lines = (RESULTS.parent / "requirements" / f"{name}.txt").read_text(encoding="utf-8").split()
    assert Path(RESULTS.parent / "runners" / f"{name}.py").is_file() and any("==" in line for line in lines)


def test_what_was_run_is_as_near_as_rounding() -> None:
    run = [
        (name, family) for name, families in FOUND.items() for family, facts in families.items() if "deviation" in facts
    ]
    assert {"comfyui", "diffsynth", "lightx2v", "vllm-omni", "diffusers", "wan2gp"} <= {name for name, _ in run}
    for name, families in FOUND.items():
        for facts in families.values():
            assert all(facts.get(key, 0) < 1e-6 for key in ("deviation", "stack")), name
    assert len({family for name, family in run if name == "comfyui"}) >= 3


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_no_pair_of_engine_and_family_is_silent(engine: Engine) -> None:
    """Each family has a row: run, read and not run, or read to take none, with the file that says so."""
    assert (
        engine.reads.keys() | engine.lacks.keys() == FAMILIES.keys() and not engine.reads.keys() & engine.lacks.keys()
    )
    section = render().partition(f"### {engine.title} {engine.version}\n")[2].partition("\n### ")[0]
    lines = [row for row in section.splitlines() if row.startswith("| ")]
    rows = {name: row for row in lines for name in row.split(" | ")[0].strip("| ").split(", ")}
    assert rows.keys() == {"family", *FAMILIES}
    found = FOUND.get(engine.name, {})
    for family in FAMILIES:
        if family in engine.lacks:
            assert "read: no LoRA" in rows[family] and "`" in engine.lacks[family]
        elif family not in found:
            assert engine.not_run in section and engine.not_run
            assert "read, not run: `" in rows[family] and ".py" in rows[family] or ".cpp" in rows[family]
        else:
            assert "run" in found[family]["how"] and family in engine.reads
    assert any(part.isalnum() for part in engine.version)
