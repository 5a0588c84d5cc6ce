"""Every example runs offline and does what it says; one is started as a user starts it."""

import re
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from fresh import python
from safetensors.torch import load_file

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.adapter.file import FILE_NAME

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def run_example(name: str, *arguments: object, fresh: bool = False) -> str:
    """What an example prints: in this process, whose imports are done, or as a user starts it."""
    (path,) = (example for example in EXAMPLES if example.stem == name)
    call = [str(path), *map(str, arguments)]
    if fresh:
        return python(*call)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", call)
        runpy.run_path(call[0], run_name="__main__")
    return out.getvalue()


def written(text: str) -> list[Path]:
    """Return the files that an example says it wrote."""
    return [Path(name) for name in re.findall(r"wrote (\S+)", text)]


def test_the_examples_are_numbered_short_and_tested() -> None:
    assert [path.stem[:3] for path in EXAMPLES] == [f"{number:02}_" for number in range(1, len(EXAMPLES) + 1)]
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).resolve().parents[1].rglob("test_*.py"))
    assert [path.stem for path in EXAMPLES if path.stem not in tests] == []
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60
        assert re.search(rf"^python examples/{path.name} .*\[FOLDER\]$", text, flags=re.MULTILINE)


def test_build(tmp_path: Path) -> None:
    out = run_example("01_build", tmp_path)
    adapter = load_adapter(tmp_path / "no-red")
    assert written(out) == [tmp_path / "no-red" / FILE_NAME]
    assert repr(adapter) in out and adapter.info.concept == "no-red"
    assert f"and {len(adapter.sites) - 2} more" in out


def test_load_and_generate(tmp_path: Path) -> None:
    out = run_example("02_load_and_generate", tmp_path)
    assert "active: ['shapeworld-red']" in out
    assert "disabled equals the base: True" in out
    seen = dict(re.findall(r"^([\w-]+): (\w+), wrote", out, flags=re.MULTILINE))
    assert list(seen) == ["before", "after", "weak", "neighbour-before", "neighbour-after"]
    assert seen["before"] == "red" and seen["after"] not in ("red", "unknown")
    assert seen["neighbour-before"] == seen["neighbour-after"] == "blue"
    assert len(written(out)) == 5 and all(path.stat().st_size > 1000 for path in written(out))


def test_stack(tmp_path: Path) -> None:
    out = run_example("03_stack", tmp_path)
    seen = dict(re.findall(r"^([\w-]+): (\w+, \w+), wrote", out, flags=re.MULTILINE))
    assert seen["base"] == "red, left"
    assert "red" not in seen["no-red"] and "left" in seen["no-red"]
    assert "red" not in seen["both"] and "left" not in seen["both"]
    assert seen["other-order"] == seen["both"] and "order does not matter: True" in out
    assert "active: ['no-left']" in out
    assert len(written(out)) == 4 and all(path.stat().st_size > 1000 for path in written(out))


def test_fuse_and_save(tmp_path: Path) -> None:
    out = run_example("04_fuse_and_save", tmp_path)
    assert re.search(r"fused: 12 of \d+ tensors changed", out)
    (difference,) = re.findall(r"differ by at most (\S+)", out)
    assert 0 < float(difference) < 1e-3
    (saved,) = re.findall(r"saved checkpoint has the fused weights: True; its latents differ by (\S+)", out)
    assert float(saved) < 1e-3
    assert "unfused, bit for bit the base: True" in out
    assert (tmp_path / "shapeworld-without-red" / "model_index.json").is_file()


def test_export(tmp_path: Path) -> None:
    out = run_example("06_export", tmp_path)
    assert written(out) == [tmp_path / "lora" / FILE_NAME, tmp_path / "no-red-no-left.safetensors"]
    assert f"{FILE_NAME} of rank 2 for 12 layers: transformer of shapeworld\n" in out
    changes, differs = (float(value) for value in re.findall(r"(?:up to|at most) (\S+)$", out, flags=re.MULTILINE))
    assert changes > 1 and differs < 1e-3
    assert out.rstrip().endswith(" with diffusion_model.blocks.0.cross_attn.k.lora_A.weight, ...")
    found = load_file(tmp_path / "no-red-no-left.safetensors")
    assert len(found) == 24 and all(name.startswith("diffusion_model.blocks.") for name in found)


@pytest.mark.parametrize("name", ["01_build"])
def test_without_a_folder_an_example_takes_a_new_one(name: str) -> None:
    paths = written(run_example(name, fresh=True))
    assert paths and all(path.is_file() for path in paths)
    for path in paths:
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
