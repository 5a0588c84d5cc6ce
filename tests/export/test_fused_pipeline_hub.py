"""A fused pipeline from the Hub and to the Hub, through the real client and a server on the loopback interface."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from loopback_hub import READ, WRITE
from tiny import tiny_wan_pipeline

from planted import planted
from unlearning_adapters import export_fused
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import AdapterNotFoundError, ConfigError, HubError


@pytest.fixture(scope="module")
def red() -> UnlearningAdapter:
    adapter = planted(tiny_wan_pipeline(), "red", seed=1)
    return replace(adapter, info=replace(adapter.info, denoisers={"transformer": "WanTransformer3DModel"}))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_wan_pipeline().save_pretrained(folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_base_on_the_hub_gives_what_its_folder_gives_and_no_pickle_is_fetched(hub, red, base, tmp_path) -> None:
    hub.create("org/wan", **files_of(base), **{"transformer/diffusion_pytorch_model.bin": b"pickle"})
    here = export_fused(red, tmp_path / "here", base=base)
    made = export_fused(red, tmp_path / "edited", base="org/wan", cache_dir=tmp_path / "cache")
    assert made.deviation == here.deviation and made.layers == 4
    other, expected = files_of(made.folder), files_of(here.folder)
    del other["unlearning_export.json"], expected["unlearning_export.json"]  # they name the base
    assert other == expected
    assert not any(path.endswith(".bin") for _, path, _, _ in hub.requests if "resolve" in path)


def test_a_complete_folder_is_pushed_as_one_commit(hub, red, base, tmp_path) -> None:
    made = export_fused(red, tmp_path / "edited", base=base, push_to="org/wan-without-red", token=WRITE)
    repository = hub.repositories["org/wan-without-red"]
    pushed = {name: data for name, data in repository.files().items() if name != ".gitattributes"}
    assert set(pushed) == set(files_of(made.folder)) and made.commit.startswith(hub.endpoint)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (made.folder / name).read_bytes() != (base / name).read_bytes()
    assert len(repository.messages) == 2 and repository.messages[-1] == "Upload a pipeline with unlearned concepts"


def test_what_the_hub_refuses_is_said(hub, red, base, tmp_path) -> None:
    with pytest.raises(AdapterNotFoundError, match="No base from the Hub repository 'org/nothing': "):
        export_fused(red, tmp_path / "x", base="org/nothing", cache_dir=tmp_path / "cache")
    with pytest.raises(HubError, match="Cannot push .* to 'org/wan-without-red': "):
        export_fused(red, tmp_path / "edited", base=base, push_to="org/wan-without-red", token=READ)
    assert not (tmp_path / "x").exists() and (tmp_path / "edited" / "unlearning_export.json").is_file()
    with pytest.raises(ConfigError, match="Expected `push_to` as 'org/name', but got 'wan'"):
        export_fused(red, tmp_path / "y", base=base, push_to="wan", token=WRITE)
    assert not (tmp_path / "y").exists()
