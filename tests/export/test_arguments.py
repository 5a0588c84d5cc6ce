"""Wrong arguments of exports, checks and suites are named in one line, before anything is written."""

import numpy as np
import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import planted
from unlearning_adapters.errors import ConfigError, EvaluationError, UnlearningError
from unlearning_adapters.evaluation.suites.file import read_suite
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.for_engine import export_for_engine
from unlearning_adapters.export.fused_pipeline import export_fused

ODD = [None, 3, ..., b"red", ["red"], {"a": 1}, object(), np.ones(3), torch.ones(2), "", "x" * 5000, "a\0b", len]
ADAPTER = planted(tiny_wan_pipeline(), "red")


def assert_one_line(error: UnlearningError) -> None:
    assert str(error).isprintable() and 20 < len(str(error)) < 1000, str(error)


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_each_argument(value, tmp_path):
    file = ADAPTER.save_pretrained(tmp_path / "red.safetensors")
    refused = [
        lambda: check_lora(value, engine="comfyui"),
        lambda: check_lora(file, engine=value),
        lambda: export_for_engine(value, tmp_path / "out", engine="comfyui"),
        lambda: export_for_engine(ADAPTER, tmp_path / "out", engine=value),
        lambda: read_suite(value),
    ]
    if value is not None:
        refused += [lambda: check_lora(file, engine="comfyui", model=value)]
        refused += [lambda: export_for_engine(ADAPTER, tmp_path / "out", engine="comfyui", strengths=value)]
    if not isinstance(value, str) or value:
        refused += [lambda: export_fused(ADAPTER, tmp_path / "out", base=value)]
    if not isinstance(value, str):
        refused += [lambda: export_fused(ADAPTER, value, base=tmp_path)]
        refused += [lambda: export_for_engine(ADAPTER, value, engine="comfyui")]
    for call in refused:
        if value is ODD[1] and call is refused[-2]:
            continue
        with pytest.raises(UnlearningError) as caught:
            call()
        assert_one_line(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["a\0b", "\ud800", "x" * 5000])
def test_a_folder_that_the_system_cannot_hold_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="Expected `destination` to be a path, but got"):
        export_fused(ADAPTER, folder, base=tmp_path)


def test_a_suite_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "link.csv").symlink_to("gone.csv")
    with pytest.raises(EvaluationError, match="Cannot read the suite .*: it is a link to 'gone.csv', where nothing is"):
        read_suite(tmp_path / "link.csv")
    (tmp_path / "pointer.yaml").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UnlearningError, match="it is a pointer of Git LFS"):
        read_suite(tmp_path / "pointer.yaml")
    with pytest.raises(ConfigError, match="Expected `file` to be a path, but got 3"):
        check_lora(3, engine="comfyui")  # type: ignore[arg-type]
