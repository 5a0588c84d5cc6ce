"""What the base of a pipeline is called: its Hub id, or the last part of a path, never the path."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from unlearning_adapters.pipelines.base_model import base_model_of, base_revision_of

COMMIT = "0123456789abcdef" * 2 + "01234567"


def named(name: str) -> SimpleNamespace:
    return SimpleNamespace(config={"_name_or_path": name})


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("org/model", "org/model"),
        ("shapeworld", "shapeworld"),
        ("", ""),
        ("/data/private/model", "model"),
        ("../private/model", "model"),
        ("./model/", "model"),
        ("private/folder/model", "model"),
    ],
)
def test_a_hub_id_is_kept_and_of_a_path_its_last_part(name: str, base: str) -> None:
    assert base_model_of(named(name)) == base


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_model_of(named("private/model")) == "model"
    assert base_model_of(named("org/model")) == "org/model"


def test_a_pipeline_without_a_name_has_none() -> None:
    assert base_model_of(object()) == base_revision_of(object()) == ""


def test_the_commit_is_that_of_the_cache_folder() -> None:
    assert base_revision_of(named(f"/cache/models--org--model/snapshots/{COMMIT}/transformer")) == COMMIT
    assert base_revision_of(named(f"/cache/snapshots/{COMMIT}0/transformer")) == ""
