"""docs/pipelines.md is what the table of tiny denoisers says, and the table's pipelines are those of diffusers."""

import ast
from functools import cache
from pathlib import Path

import diffusers
import pytest

from pipeline_table import BESIDE, PAGE, PIPELINES, WHOLE, page, pipelines
from tiny_denoisers import TINY

SOURCES = Path(diffusers.__file__).parent


def class_name(pipeline: str) -> str:
    return pipeline if pipeline.endswith("Refiner") else f"{pipeline}Pipeline"


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
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/pipeline_table.py`"


def test_every_denoiser_has_its_pipelines():
    assert set(PIPELINES) == {tiny.model for tiny in TINY}
    names = [name for name, _ in pipelines()]
    assert len(names) == len(set(names)) == 75 + 18 + 1  # and the refiner
    assert (set(BESIDE) | WHOLE) <= set(names)


@pytest.mark.parametrize(("pipeline", "denoiser"), pipelines(), ids=[name for name, _ in pipelines()])
def test_pipeline_has_this_denoiser(pipeline, denoiser):
    if pipeline.endswith("Modular"):
        assert hasattr(diffusers, class_name(pipeline))
    else:
        assert denoiser in denoiser_types()[class_name(pipeline)]


def test_a_pipeline_is_called_whole_only_if_a_test_makes_it():
    sources = "".join(path.read_text(encoding="utf-8") for path in PAGE.parents[1].glob("tests/tiny.py"))
    for name in WHOLE:
        assert f"{name}Pipeline(" in sources
