"""A Space is written, built and started; and what its page may not do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from gradio_page import serving

from unlearning_adapters.cli.app.space import GRADIO, PILLOW

Outcome = tuple[int, str, str]
START = "import runpy\nrunpy.run_path('app.py', run_name='__main__')"


def test_a_space_has_three_files_and_is_not_written_over(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    code, out, _ = unlearn("app", "--space", tmp_path / "space")
    assert code == 0 and out.split() == [
        f"{tmp_path}/space/{name}" for name in ("app.py", "README.md", "requirements.txt")
    ]
    front = yaml.safe_load((tmp_path / "space/README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["sdk_version"] == GRADIO
    assert (version("gradio"), version("pillow")) == (GRADIO, PILLOW)  # the versions with which the page was tested
    lines = (tmp_path / "space/requirements.txt").read_text().splitlines()
    assert (
        lines[0].startswith("unlearning-adapters[app]")
        and f"gradio=={GRADIO}" in lines
        and f"pillow=={PILLOW}" in lines
    )
    code, _, error = unlearn("app", "--space", tmp_path / "space")
    assert code == 1 and "is there already" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_space_starts_in_a_new_environment(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    """The environment is new and sees the installed packages through a path file: torch is not downloaded again."""
    assert unlearn("app", "--space", tmp_path / "space")[0] == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    source = str(Path(__file__).resolve().parents[3] / "src")
    (packages / "packages.pth").write_text("\n".join([source, *(path for path in sys.path if "site-packages" in path)]))
    python = str(tmp_path / "env/bin/python")
    with serving(tmp_path / "space", body=START, python=python, HF_TOKEN="") as server:
        import httpx

        page = httpx.get(server.address).text
        assert "unlearning-adapters" in page and "on this machine alone" not in page
        assert server.asked() == set()
