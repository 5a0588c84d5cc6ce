"""Engines that merge a file into the weights, with their own loaders: DiffSynth, LightX2V, vLLM-Omni, mlx-video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from engine_bench import FAMILIES, adapters_for, compare, fused

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.lora import export_lora

pytestmark = pytest.mark.engines
ROUNDING = 1e-6
# bfloat16 holds 8 bits: the factors are rounded to it before the product, the sum after it.
HALF = {"diffsynth": 2e-2, "lightx2v": 2e-2, "vllm_omni": 8e-3, "mlx_video": 8e-3}
NAMES = {"vllm_omni": "vllm-omni", "mlx_video": "mlx-video"}


@pytest.fixture(scope="module")
def wan(engine, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weights of ComfyUI's tiny Wan: those of the first release, by its names."""
    folder = tmp_path_factory.mktemp("models")
    engine("comfyui").run([{"make": "wan", "out": str(folder / "wan.safetensors")}], folder)
    return folder, FAMILIES["wan"].convert(safetensors.torch.load_file(folder / "wan.safetensors"))


class Bench:
    """One engine on all files, in one run."""

    def __init__(self, engine: Any, name: str, folder: Path, weights: dict[str, torch.Tensor], models: Path) -> None:
        self.name, self.weights, self.folder = name, weights, folder
        self.adapters = adapters_for("wan", weights)
        if name == "vllm_omni":  # it has the names of diffusers
            safetensors.torch.save_file(
                {key: value.contiguous() for key, value in weights.items()}, folder / "wan.safetensors"
            )
        source = (folder if name == "vllm_omni" else models) / "wan.safetensors"
        program = NAMES.get(name, name)
        one, stack = (
            export_lora(adapters, folder / kind, engine=program).file
            for kind, adapters in (("one", self.adapters[:1]), ("stack", self.adapters))
        )
        adapter = save_adapter(self.adapters[0], folder / "adapter")
        stock = export_lora(self.adapters[0], folder / "stock").file
        files = {"one": one, "stack": stack, "bfloat16": one, "adapter": adapter, "diffusers": stock}
        self.files = files
        self.jobs = {
            kind: {
                "weights": str(source), "loras": [[str(file), 1.0]], "out": str(folder / f"out-{kind}"),
                "dtype": "bfloat16" if kind == "bfloat16" else "float32",
            }
            for kind, file in files.items()
        }  # fmt: skip
        self.found = dict(zip(self.jobs, engine(name).run(list(self.jobs.values()), folder), strict=True))

    def turned(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return weights if self.name == "vllm_omni" else FAMILIES["wan"].convert(weights)

    def after(self, kind: str, before: bool = False) -> dict[str, torch.Tensor]:
        return self.turned(safetensors.torch.load_file(self.jobs[kind]["out"] + (".before" if before else "")))


@pytest.fixture(scope="module", params=["diffsynth", "lightx2v", "vllm_omni", "mlx_video"])
def bench(request, engine, wan, tmp_path_factory) -> Bench:
    return Bench(engine, request.param, tmp_path_factory.mktemp(request.param), wan[1], wan[0])


@pytest.mark.parametrize("kind", ["one", "stack"])
def test_its_weights_are_ours(bench: Bench, record, kind: str) -> None:
    expected = fused(bench.weights, bench.adapters[: 1 if kind == "one" else 2])
    found = compare(bench.after(kind, before=True), bench.after(kind), expected)
    assert found["deviation"] < ROUNDING and found["effect"] > 1e-2 and found["others_changed"] == 0
    facts = {"deviation": found["deviation"]} if kind == "one" else {"stack": found["deviation"]}
    record(NAMES.get(bench.name, bench.name), "wan", how="run", loads="all", **facts)


def test_bfloat16_is_as_near_as_it_rounds(bench: Bench, record) -> None:
    before, after = bench.after("bfloat16", before=True), bench.after("bfloat16")
    expected = fused(before, bench.adapters[:1], torch.bfloat16)
    found = compare(before, after, expected)
    assert found["deviation"] < HALF[bench.name] and found["effect"] > 1e-2
    text = f"{found['deviation']:.1e}, {found['differing']:.0%} of elements off by a rounding"
    record(NAMES.get(bench.name, bench.name), "wan", bfloat16=text)


def test_the_adapter_and_the_stock_layout_do_what_our_table_says(bench: Bench) -> None:
    for kind in ("adapter", "diffusers"):
        reading = check_lora(bench.files[kind], engine=NAMES.get(bench.name, bench.name))
        before, after = bench.after(kind, before=True), bench.after(kind)
        changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(reading.layers), kind


def test_what_undoes_the_edit(bench: Bench, record) -> None:
    """None of these keeps the weights: what they add they can subtract, which is not the way back."""
    off = bench.found["one"].get("not_restored")
    if bench.name in ("lightx2v", "mlx_video"):
        undo = "no way back but a restart"
    else:
        assert off > 1000
        undo = "restart: subtracting leaves other numbers"
    record(NAMES.get(bench.name, bench.name), "wan", undo=undo)


def test_vllm_omni_takes_two_files_by_position(engine, wan, record, tmp_path) -> None:
    """The names in both files begin with `transformer.`: in the wrong order each expert gets the other's factors."""
    first = wan[1]
    maker = torch.Generator().manual_seed(5)
    second = {name: 0.1 * torch.randn(value.shape, generator=maker) for name, value in first.items()}
    files = []
    for component, weights in (("transformer", first), ("transformer_2", second)):
        safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / component)
        adapter = adapters_for("wan", weights, component)[0]
        files.append(str(export_lora(adapter, tmp_path / f"lora-{component}", engine="vllm-omni").file))
    models = [str(tmp_path / component) for component in ("transformer", "transformer_2")]
    jobs = [
        {"weights": models, "loras": [[file, 1.0] for file in order], "out": str(tmp_path / f"out-{number}")}
        for number, order in enumerate((files, files[::-1]))
    ]
    engine("vllm_omni").run(jobs, tmp_path)
    for number, end, weights in ((0, "", first), (0, ".second", second), (1, "", first)):
        component = "transformer_2" if end else "transformer"
        expected = fused(weights, adapters_for("wan", weights, component)[:1])
        after = safetensors.torch.load_file(str(tmp_path / f"out-{number}") + end)
        found = compare(weights, after, expected)
        assert (found["deviation"] < ROUNDING) == (number == 0), (number, end)
    record("vllm-omni", "wan", experts="run: a list of two files, high noise first")


def test_ltx_core_reads_the_native_names_alone(engine, record, tmp_path) -> None:
    """Its own loader and fusing, in bfloat16, which is all that they take; the stock layout changes nothing."""
    maker = torch.Generator().manual_seed(0)
    weights = {f"{path}.weight": 0.1 * torch.randn(48, 32, generator=maker) for path in FAMILIES["ltx-2"].sites}
    weights["transformer_blocks.0.attn1.to_k.weight"] = 0.1 * torch.randn(48, 32, generator=maker)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    adapters = adapters_for("ltx-2", weights)
    files = {
        "one": export_lora(adapters[0], tmp_path / "one", engine="ltx-core").file,
        "stack": export_lora(adapters, tmp_path / "stack", engine="ltx-core").file,
        "diffusers": export_lora(adapters[0], tmp_path / "stock", layout="diffusers").file,
    }
    jobs = [
        {
            "weights": str(tmp_path / "model.safetensors"),
            "loras": [[str(file), 1.0]],
            "out": str(tmp_path / f"out-{kind}"),
        }
        for kind, file in files.items()
    ]
    found = dict(zip(files, engine("ltx_core").run(jobs, tmp_path), strict=True))
    for kind, result in found.items():
        reading = check_lora(files[kind], engine="ltx-core", family="ltx-2")
        assert result["changed"] == sorted(f"{path}.weight" for path in reading.layers), kind
    assert not found["diffusers"]["changed"]
    before = safetensors.torch.load_file(tmp_path / "out-one.before")
    for kind, number in (("one", 1), ("stack", 2)):
        expected = fused(before, adapters[:number], torch.bfloat16)
        result = compare(before, safetensors.torch.load_file(tmp_path / f"out-{kind}"), expected)
        assert result["deviation"] < 2e-2 and result["effect"] > 1e-2 and result["others_changed"] == 0
        if kind == "one":
            text = f"{result['deviation']:.1e}, {result['differing']:.0%} of elements off by a rounding"
    record(
        "ltx-core", "ltx-2", how="run: its loader and fusing, on a dictionary of weights", loads="all", bfloat16=text
    )
    record("ltx-core", "ltx-2", undo="no way back but a restart")
