"""The guide is executed: the Python of each page as one program, then its commands, in a new folder."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearning_adapters.shapeworld.models.generate import GENERATION

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(page.name for page in GUIDE.glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_as_it_stands(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlearn: Callable[..., tuple[int, str, str]],
) -> None:
    fences = FENCE.findall((GUIDE / name).read_text(encoding="utf-8"))
    assert {language for language, _ in fences} <= {"python", "bash", "yaml"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(GENERATION, "num_inference_steps", 6)  # half of what takes the time
    program = "\n".join(body for language, body in fences if language == "python")
    exec(compile(program, name, "exec"), {"__name__": "__main__"})
    for body in (body for language, body in fences if language == "bash"):
        for line in body.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            code, out, error = unlearn(*arguments)
            assert program == "unlearn" and code == 0 and out, error


def test_the_file_of_the_guide_is_a_concept(tmp_path: Path) -> None:
    from unlearning_adapters import load_concept

    ((_, text),) = [fence for fence in FENCE.findall((GUIDE / "build.md").read_text("utf-8")) if fence[0] == "yaml"]
    (tmp_path / "no-crimson.yaml").write_text(text, encoding="utf-8")
    assert load_concept(tmp_path / "no-crimson.yaml").words == ("crimson",)
