"""A method is added in the two steps of docs/architecture.md: a file, and a line."""

import shutil
from pathlib import Path

from fresh import in_copy

from unlearning_adapters.adapter.adapter import load_adapter

ROOT = Path(__file__).resolve().parents[2]
TOY = '''"""The method "toy": the difference of the means of all tokens, scaled by a setting of its own."""

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig

from .factors import orthogonal
from .method import Method, Range
from .refusal import pooled_refusal_vector
from .rows import GroupRows


def _find(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    vector = pooled_refusal_vector(rows.unsafe, rows.safe)
    vector[: config.components] = 0
    return orthogonal(vector[None].double(), vector.device)


TOY = Method(_find, needs_neutral=True, searched={"components": Range(1, 5)})
'''
RUN = """
import sys
from unlearning_adapters.cli.main import main
from unlearning_adapters.search.space import suggest
from unlearning_adapters.evaluation.comparison.compare import COMPARED
import optuna

assert "toy" in COMPARED
trial = optuna.trial.FixedTrial({"method": "toy", "strength": 1.0, "components": 4})
assert suggest(trial, (), 2, 0).components == 4
sys.exit(main(["build", "shapeworld", "shapeworld-red", "-o", sys.argv[1], "--method", "toy", "--components", "3"]))
"""


def insert(file: Path, after: str, line: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(after) == 1, after
    file.write_text(text.replace(after, f"{after}{line}"), encoding="utf-8")


def test_a_toy_method_takes_a_file_and_a_line(tmp_path: Path) -> None:
    package = tmp_path / "src" / "unlearning_adapters"
    shutil.copytree(ROOT / "src" / "unlearning_adapters", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "toy.py").write_text(TOY, encoding="utf-8")
    line = '    "toy": MethodEntry("toy:TOY", ("components",)),\n'
    insert(package / "config.py", "METHODS: Mapping[str, MethodEntry] = {\n", line)
    in_copy("-c", RUN, tmp_path / "made", cwd=tmp_path, path=[tmp_path / "src"])
    adapter = load_adapter(tmp_path / "made")
    assert adapter.info.method == "toy" and adapter.info.settings["components"] == 3
    for direction in adapter.directions.values():
        assert direction.orthogonal and not direction.read[:, :3].any() and direction.read[:, 3].any()
