"""docs/pipelines.md and `unlearn pipelines` say what the tables of the tests say, of the pipelines of diffusers."""

import ast
import json
from functools import cache
from pathlib import Path

import diffusers
import pytest
from pipeline_table import (
    BESIDE,
    DATA,
    EDITED,
    PAGE,
    PIPELINES,
    TWO,
    cases,
    class_name,
    data,
    page,
    pipelines,
    rows,
)
from tiny_denoisers import TINY

from unlearning_adapters.cli.main import main
from whole import Broken, NotRun, Whole

SOURCES = Path(diffusers.__file__).parent


@cache
def denoiser_types() -> dict[str, str]:
    """The annotation of the denoiser in the constructor of each pipeline class, read from diffusers' sources."""
    found = {}
    for path in SOURCES.glob("pipelines/**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                makers = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
                arguments = [argument for maker in makers for argument in maker.args.args if argument.annotation]
                types = [ast.unparse(item.annotation) for item in arguments if item.arg in ("transformer", "unet")]
                found[node.name] = types[0] if types else ""
    return found


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `PYTHONPATH=src python tests/support/pipeline_table.py`"


def test_the_shipped_table_is_up_to_date():
    assert DATA.read_text(encoding="utf-8") == data(), "run `PYTHONPATH=src python tests/support/pipeline_table.py`"


def test_every_denoiser_has_its_pipelines():
    assert set(PIPELINES) == {tiny.model for tiny in TINY}
    names = [name for name, _ in pipelines()]
    assert len(names) == len(set(names)) == 75 + 18 + 1  # and the refiner
    assert (set(BESIDE) | set(EDITED) | TWO) <= set(names)


@pytest.mark.parametrize(("pipeline", "denoiser"), pipelines(), ids=[name for name, _ in pipelines()])
def test_pipeline_has_this_denoiser(pipeline, denoiser):
    if pipeline.endswith("Modular"):
        assert hasattr(diffusers, class_name(pipeline))
    else:
        assert denoiser in denoiser_types()[class_name(pipeline)]


def test_every_case_is_in_the_table():
    names = {class_name(name) for name, _ in pipelines()}
    assert {case.pipeline for case in cases()} <= names
    texts = {str(case) for case in cases()}
    assert len(texts) == len(cases()), "two cases have one name"


def test_a_row_says_no_more_than_the_cases():
    for row in rows():
        own = [case for case in cases() if case.pipeline == row["pipeline"]]
        assert (row["tested"] == "whole") == any(isinstance(case, Whole) for case in own)
        if row["tested"] != "whole":
            assert row["remarks"], f"{row['pipeline']}: why is it not run as a whole?"
        if row["tested"] == "fails in diffusers":
            assert [row["error"]] == [case.text for case in own if isinstance(case, Broken)]
        assert not {type(case) for case in own} >= {Whole, NotRun}


def test_every_family_is_run_as_a_whole():
    whole = {row["denoiser"] for row in rows() if row["tested"] == "whole"}
    assert set(PIPELINES) == whole


def test_open_doors_are_those_that_were_measured():
    """The denoiser's doors are asserted in test_denoisers.py; a row names each of them."""
    for row in rows():
        doors = {tiny.doors for tiny in TINY if tiny.model == row["denoiser"]}
        assert any(set(door.split("; ")) - {""} <= set(row["open_doors"]) for door in doors)
        if "ControlNet" in row["pipeline"]:
            assert any("controlnet" in door for door in row["open_doors"])


def test_the_command_shows_the_table(capsys):
    assert main(["pipelines", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(data()) and shown["diffusers"] == diffusers.__version__
    assert main(["pipelines", "wanvace"]) == 0
    out = capsys.readouterr().out
    assert "WanVACEPipeline: whole (plain, two denoisers)" in out
    assert "text sites: {vace_,}blocks.N.attn2.{to_k,to_v}" in out and "CogVideoX" not in out


def test_a_name_that_no_pipeline_has_is_an_error(capsys):
    assert main(["pipelines", "nosuch"]) == 1
    assert capsys.readouterr().err == (
        f"error: No pipeline or denoiser of diffusers {diffusers.__version__} has 'nosuch' in its name. "
        "`unlearn pipelines` lists all.\n"
    )
