"""`unlearn doctor`: each edit verified, and the environment, as a table and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import lora_that_reads, planted
from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.cli.commands import doctor as doctor_command
from unlearning_adapters.runtime.checks.environment import describe_environment
from unlearning_adapters.runtime.hooks.registry import unregister

Outcome = tuple[int, str, str]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    pipe = tiny_wan_pipeline()
    monkeypatch.setattr(doctor_command, "open_pipeline", lambda *_: pipe)
    return pipe


@pytest.fixture
def file(pipe: Any, tmp_path: Path) -> Path:
    return save_adapter(planted(pipe), tmp_path / "no-red")


@pytest.mark.parametrize("fuse", [False, True])
def test_all_is_well(unlearn: Callable[..., Outcome], file: Path, fuse: bool) -> None:
    code, out, err = unlearn("doctor", "tiny", file, *(["--fuse"] if fuse else []))
    assert code == 0 and out.rstrip().endswith("ok: 4 sites are edited"), err
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["transformer", "device", "cpu"] in lines and ["transformer", "dtype", "float32"] in lines
    assert ["transformer", "quantisation", "none"] in lines
    assert f"diffusers {diffusers.__version__}" in out and ("as fused" in out) is fuse


def test_json_holds_the_answer_and_the_environment(unlearn: Callable[..., Outcome], file: Path, pipe: Any) -> None:
    code, out, _ = unlearn("doctor", "tiny", file, "--strength", "0.5", "--json")
    data = json.loads(out)
    assert code == 0 and data["ok"] and len(data["sites"]) == 4
    assert data["adapters"]["red"]["strength"] == 0.5
    assert data["environment"] == describe_environment(pipe)
    assert data["environment"]["versions"]["torch"] == torch.__version__


def test_without_an_adapter_it_shows_the_pipeline(unlearn: Callable[..., Outcome], pipe: Any) -> None:
    code, out, _ = unlearn("doctor", "tiny")
    assert code == 0 and "No adapter is loaded." in out and type(pipe).__name__ in out


def test_what_is_wrong_makes_the_exit_code(
    unlearn: Callable[..., Outcome], file: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearning_adapters.runtime import verbs

    load = verbs.load_unlearning_adapter

    def load_and_break(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        unregister(pipe.transformer.blocks[1].attn2.to_v)

    monkeypatch.setattr(verbs, "load_unlearning_adapter", load_and_break)
    code, out, _ = unlearn("doctor", "tiny", file)
    assert code == 1 and "wrong: 1 of 4 sites" in out
    assert "transformer.blocks.1.attn2.to_v: the hook was taken off the layer" in out


def test_a_number_of_strengths_that_does_not_fit_is_one_line(unlearn: Callable[..., Outcome], file: Path) -> None:
    code, out, err = unlearn("doctor", "tiny", file, "--strength", "1", "--strength", "1")
    assert (code, out) == (1, "") and err.startswith("error: Got 2 values of --strength for 1 adapters")


def test_the_environment_names_loras_caches_offloading_and_compilation() -> None:
    pipe = tiny_wan_pipeline(dtype=torch.bfloat16)
    plain = describe_environment(pipe)["denoisers"]["transformer"]
    assert "bfloat16" in plain["dtype"] and plain["loras"] == {} and plain["offloading"] == [] and plain["cache"] == ""
    assert plain["compiled"] is False and plain["processors"] == ["WanAttnProcessor"] and not plain["sharded"]
    pipe.load_lora_weights(lora_that_reads(planted(pipe), pipe), adapter_name="style")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig())
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    pipe.transformer.compile_repeated_blocks()
    found = describe_environment(pipe)["denoisers"]["transformer"]
    assert found["loras"] == {"style": "acts"} and found["cache"] == "FirstBlockCacheConfig" and found["compiled"]
    assert found["offloading"] == ["AlignDevicesHook"]
    pipe = tiny_wan_pipeline()
    pipe.load_lora_weights(lora_that_reads(planted(pipe), pipe), adapter_name="style")
    for state, change in (("inactive", pipe.disable_lora), ("fused", pipe.fuse_lora)):
        change()
        assert describe_environment(pipe)["denoisers"]["transformer"]["loras"] == {"style": state}
        pipe.enable_lora()
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    assert describe_environment(pipe)["denoisers"]["transformer"]["offloading"] == ["group offloading"]
