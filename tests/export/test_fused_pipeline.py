"""A pipeline with the edit in its weights: the same bits as fusing gives, in little memory, resumed, verified."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import tiny_wan_pipeline

from planted import output, planted
from unlearning_adapters import export_fused
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.errors import (
    AdapterFileError,
    AdapterNotFoundError,
    BaseMismatchError,
    ConfigError,
    FuseError,
    SiteError,
)
from unlearning_adapters.export import fused_pipeline

COMPONENTS = ("transformer", "transformer_2")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def adapter_of(pipe, concept: str, seed: int, strength: float, scope: str = "word") -> UnlearningAdapter:
    adapter = planted(pipe, concept, seed=seed, strength=strength, scope=scope)
    kinds = dict.fromkeys(adapter.components, "WanTransformer3DModel")
    return replace(adapter, info=replace(adapter.info, denoisers=kinds))


@pytest.fixture(scope="module")
def stack() -> list[UnlearningAdapter]:
    return stack_of("word")


def stack_of(scope: str) -> list[UnlearningAdapter]:
    pipe = tiny_wan_pipeline(two_denoisers=True)
    return [adapter_of(pipe, "red", 1, 1.2, scope), adapter_of(pipe, "left", 2, 0.7)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pipe = tiny_wan_pipeline(two_denoisers=True)
    pipe.save_pretrained(folder, max_shard_size="100KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) >= 3, "one file would not show that shards work"
    return folder


def refused(error: type[Exception], text: str, *arguments, **options) -> None:
    with pytest.raises(error, match=text) as caught:
        export_fused(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scope", ["word", "concept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_are_those_of_fusing_bit_for_bit(tmp_path, dtype: torch.dtype, scope: str) -> None:
    stack = stack_of(scope)
    pipe = tiny_wan_pipeline(two_denoisers=True, dtype=dtype)
    pipe.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    made = export_fused(stack, tmp_path / "edited", base=tmp_path / "base", strengths=[1.0, None])
    for adapter, strength in zip(stack, (1.0, None), strict=True):
        pipe.load_unlearning_adapter(adapter, strength=strength)
    # A record that is a copy sums edits of several rows in another order, one rounding of float32 apart.
    pipe.fuse_unlearning_adapters(record="auto" if scope == "word" else "compact")
    saved = DiffusionPipeline.from_pretrained(tmp_path / "edited", torch_dtype=dtype)
    changed = 0
    for component in COMPONENTS:
        before = tiny_wan_pipeline(two_denoisers=True, dtype=dtype).components[component].state_dict()
        after = getattr(saved, component).state_dict()
        for name, value in getattr(pipe, component).state_dict().items():
            assert torch.equal(value, after[name]), name
            changed += not torch.equal(value, before[name])
    assert changed == made.layers == len(stack[0].sites) and made.strengths == (1.0, 0.7)
    assert len(stack[0].sites) == (8 if scope == "word" else 30)
    assert 0 < made.deviation < {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]


def test_all_other_files_are_the_same_bytes(stack, base, tmp_path) -> None:
    made = export_fused(stack, tmp_path / "edited", base=str(base))
    names = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    written = sorted(str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file())
    assert written == sorted([*names, "unlearning_export.json"]) and made.files == len(names)
    differing = {name for name in names if (base / name).read_bytes() != (made.folder / name).read_bytes()}
    assert differing and all(name.startswith("transformer") and name.endswith(".safetensors") for name in differing)
    record = json.loads((made.folder / "unlearning_export.json").read_text())
    assert [each["concept"] for each in record["adapters"]] == ["red", "left"] and len(record["sites"]) == 8


def test_the_edit_is_the_joint_one(stack, base, tmp_path) -> None:
    made = export_fused(stack, tmp_path / "edited", base=base)
    one_by_one = export_fused(
        stack[1], tmp_path / "two", base=export_fused(stack[0], tmp_path / "one", base=base).folder
    )
    edited, other, before = (
        output(DiffusionPipeline.from_pretrained(folder)) for folder in (made.folder, one_by_one.folder, base)
    )
    assert (edited - before).abs().max() > 1e-2
    attached = tiny_wan_pipeline(two_denoisers=True)
    for adapter in stack:
        attached.load_unlearning_adapter(adapter)
    torch.testing.assert_close(edited, output(attached), rtol=1e-3, atol=1e-4)
    assert (other - edited).abs().max() > 1e-4


def test_a_pipeline_is_a_base_too(stack, base, tmp_path) -> None:
    pipe = tiny_wan_pipeline(two_denoisers=True)
    made = export_fused(stack, tmp_path / "edited", base=pipe)
    folder = export_fused(stack, tmp_path / "folder", base=base).folder
    for component in COMPONENTS:
        weights = load_file(made.folder / component / WEIGHTS)
        shards = [load_file(file) for file in sorted((folder / component).glob("*.safetensors"))]
        merged = {name: value for shard in shards for name, value in shard.items()}
        assert weights.keys() == merged.keys() and all(torch.equal(weights[name], merged[name]) for name in merged)
    for adapter in stack:
        pipe.load_unlearning_adapter(adapter)
    pipe.fuse_unlearning_adapters()
    refused(FuseError, "has adapters in its weights already", stack, tmp_path / "again", base=pipe)
    refused(ConfigError, "folder, a repository or a pipeline as `base`, but got a int", stack, tmp_path / "x", base=3)


def test_a_pipeline_whose_parts_were_deleted_is_refused_and_none_is_a_choice(stack, tmp_path) -> None:
    pipe, out = tiny_wan_pipeline(two_denoisers=True), tmp_path / "edited"
    del pipe.vae
    refused(ConfigError, "The base cannot be written whole: vae is deleted. Load the pipeline", stack, out, base=pipe)
    del pipe.transformer
    refused(ConfigError, "vae, transformer are deleted", stack, out, base=pipe)
    assert not out.exists()
    chosen = tiny_wan_pipeline(two_denoisers=True)
    chosen.vae = None
    assert not (export_fused(stack, out, base=chosen).folder / "vae").exists()


def test_an_interrupted_call_goes_on_where_it_stopped(stack, base, tmp_path, monkeypatch) -> None:
    whole = export_fused(stack, tmp_path / "whole", base=base)
    written, fuse = [], fused_pipeline.fuse_shard

    def interrupted(source: Path, target: Path, edits) -> dict[str, str]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(target)
        return fuse(source, target, edits)

    monkeypatch.setattr(fused_pipeline, "fuse_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_fused(stack, tmp_path / "edited", base=base)
    assert not (tmp_path / "edited" / "unlearning_export.json").exists(), "a half pipeline must not look complete"
    before = {path: path.stat().st_mtime_ns for path in written}
    text = "holds part of another export, of other adapters, strengths or base. Delete it"
    refused(AdapterFileError, text, stack[0], tmp_path / "edited", base=base)
    monkeypatch.undo()
    made = export_fused(stack, tmp_path / "edited", base=base)
    assert {path: path.stat().st_mtime_ns for path in written} == before, "finished files were written again"
    assert made == replace(whole, folder=made.folder)
    for path in whole.folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (made.folder / path.relative_to(whole.folder)).read_bytes()
    refused(AdapterFileError, "exists already and was not changed", stack, tmp_path / "edited", base=base)


def test_a_file_that_the_disk_spoils_is_noticed(stack, base, tmp_path, monkeypatch) -> None:
    fuse = fused_pipeline.fuse_shard

    def spoiled(source: Path, target: Path, edits) -> dict[str, str]:
        digests = fuse(source, target, edits)
        with target.open("r+b") as file:
            file.seek(-3, 2)
            file.write(b"\x01")
        return digests

    monkeypatch.setattr(fused_pipeline, "fuse_shard", spoiled)
    refused(FuseError, r"is not what was written. Check the disk, and export again", stack, tmp_path / "x", base=base)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path) -> None:
    """400 MB of other weights, which lie in a sparse file, and one edited layer of 19 MB."""
    size, rows, columns = 400_000_000, 3072, 3072
    folder = tmp_path / "base" / "transformer"
    folder.mkdir(parents=True)
    (tmp_path / "base" / "model_index.json").write_text("{}")
    edited, end = 2 * rows * columns, 2 * rows * columns + size
    header = json.dumps({
        "blocks.0.attn2.to_k.weight": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, edited]},
        "other.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [edited, end]},
    }).encode()  # fmt: skip
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(torch.full((rows, columns), 0.5, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
        file.truncate(8 + len(header) + end)
    adapter = planted(tiny_wan_pipeline(), "red")
    site = "transformer.blocks.0.attn2.to_k"
    read = torch.nn.functional.normalize(torch.ones(1, columns), dim=1)
    direction = replace(adapter.directions[site], read=read, write=read)
    small = replace(adapter, directions={site: direction}, lora_B={site: torch.zeros(rows, 1)})
    save_adapter(small, tmp_path / "no-red")
    code = (
        "import resource, sys; from unlearning_adapters import export_fused; import diffusers, torch; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "made = export_fused(sys.argv[1], sys.argv[2], base=sys.argv[3]); "
        "print(made.layers, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    places = [tmp_path / name for name in ("no-red", "out", "base")]
    done = subprocess.run([sys.executable, "-c", code, *places], capture_output=True, text=True, check=True)
    layers, before, peak = map(int, done.stdout.split())
    assert layers == 1 and (peak - before) * 1024 < 160_000_000, (before, peak)
    assert peak * 1024 < 2 * 2**30


def test_pickles_of_edited_components_are_left_out(stack, base, tmp_path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"weights of before")
    with pytest.warns(UserWarning, match=r"Left out 1 pickles of edited components, such as transformer.diffusion_pyt"):
        made = export_fused(stack, tmp_path / "edited", base=tmp_path / "base")
    assert not list(made.folder.rglob("*.bin"))


def test_what_does_not_fit_is_refused_before_anything_is_written(stack, base, tmp_path) -> None:
    tiny_wan_pipeline().save_pretrained(tmp_path / "one")
    tiny_wan_pipeline(two_denoisers=True, heads=6).save_pretrained(tmp_path / "wide")
    out = tmp_path / "out"
    refused(SiteError, r"holds the weight of transformer_2\.blocks.*, one of 4 such sites of 8", stack, out,
            base=tmp_path / "one")  # fmt: skip
    refused(BaseMismatchError, r"reads 48 features, and its weight in .* has the shape \(72, 72\)", stack, out,
            base=tmp_path / "wide")  # fmt: skip
    other = replace(stack[0], info=replace(stack[0].info, denoisers={"transformer": "LTXVideoTransformer3DModel"}))
    refused(BaseMismatchError, "was built on a LTXVideoTransformer3DModel, and transformer of the base is a Wan", other,
            out, base=base)  # fmt: skip
    refused(AdapterNotFoundError, "No base at .*nowhere", stack, out, base=tmp_path / "nowhere" / "x" / "y")
    refused(AdapterNotFoundError, "has no model_index.json", stack, out, base=base / "transformer")
    refused(ConfigError, "at least one adapter to fuse", [], out, base=base)
    refused(ConfigError, "one strength for each of 2 adapters, but got 1", stack, out, base=base, strengths=[1.0])
    refused(ConfigError, "All strengths are 0", stack, out, base=base, strengths=0.0)
    assert not out.exists()


def test_a_quantised_weight_is_refused(stack, base, tmp_path) -> None:
    shutil.copytree(base, tmp_path / "base")
    name = "blocks.0.attn2.to_k.weight"
    file = next(each for each in (tmp_path / "base" / "transformer").glob("*.safetensors") if name in load_file(each))
    weights = load_file(file)
    save_file({**weights, name: weights[name].to(torch.float8_e4m3fn)}, file)
    refused(
        FuseError, rf"{name} is quantised \(F8_E4M3\), so that an edit", stack, tmp_path / "x", base=tmp_path / "base"
    )
