"""ComfyUI: its own models, `load_lora_for_models` and ModelPatcher, on the files that are exported for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from engine_bench import FAMILIES, adapters_for, compare, fused

from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.lora import export_lora

pytestmark = pytest.mark.engines

RUN = ("wan", "wan-image", "wan-vace", "hunyuan-video", "ltx")  # version 0.3.64 has no HunyuanVideo 1.5
ROUNDING = 1e-6  # float32 sums in another order


class Bench:
    """All models and files, in two runs of ComfyUI: one that makes the models, one that applies the files."""

    def __init__(self, run: Callable[..., list[dict[str, Any]]], folder: Path) -> None:
        self.folder = folder
        run([{"make": family, "out": str(folder / f"{family}.safetensors")} for family in RUN], folder)
        self.native = {family: safetensors.torch.load_file(folder / f"{family}.safetensors") for family in RUN}
        self.weights = {family: FAMILIES[family].convert(dict(native)) for family, native in self.native.items()}
        self.adapters = {family: adapters_for(family, weights) for family, weights in self.weights.items()}
        jobs = {}
        for family, adapters in self.adapters.items():
            one = export_lora(adapters[0], folder / family / "one", engine="comfyui")
            stack = export_lora(adapters, folder / family / "stack", engine="comfyui")
            jobs[family, "one"] = self.job(family, [[str(one.file), 1.0]])
            jobs[family, "stack"] = self.job(family, [[str(stack.file), 1.0]])
            jobs[family, "bfloat16"] = self.job(family, [[str(one.file), 1.0]], dtype="bfloat16")
            adapter = save_adapter(adapters[0], folder / family / "adapter")
            stock = export_lora(adapters[0], folder / family / "stock")
            for kind, file in (("adapter", adapter), ("diffusers", stock.file)):
                jobs[family, kind] = self.job(family, [[str(file), 1.0]])
            kohya = export_lora(adapters[0], folder / family / "kohya.safetensors", layout="kohya")
            jobs[family, "kohya"] = self.job(family, [[str(kohya.file), 1.0]])
        text = of_sites(self.adapters["hunyuan-video"][0], ".add_")  # no `img_attn_qkv` of its own
        zeros = export_lora(text, folder / "zeros", layout="native-for-diffusers")
        plain = export_lora(text, folder / "plain", engine="comfyui")
        for name, file in (("zeros", zeros.file), ("plain", plain.file)):
            jobs["hunyuan-video", f"float8 {name}"] = self.job("hunyuan-video", [[str(file), 1.0]], "float8_e4m3fn")
        results = run(list(jobs.values()), folder)
        self.found = dict(zip(jobs, results, strict=True))
        self.jobs = jobs

    def job(self, family: str, loras: list[list[Any]], dtype: str = "float32") -> dict[str, Any]:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}-{abs(hash((family, str(loras), dtype)))}"
        return {"weights": str(self.folder / f"{family}.safetensors"), "loras": loras, "out": str(out), "dtype": dtype}

    def after(self, family: str, kind: str, before: bool = False) -> dict[str, torch.Tensor]:
        weights = safetensors.torch.load_file(self.jobs[family, kind]["out"] + (".before" if before else ""))
        return FAMILIES[family].convert(weights)


def of_sites(adapter: UnlearningAdapter, part: str) -> UnlearningAdapter:
    sites = [site for site in adapter.sites if part in site]
    return replace(
        adapter,
        directions={site: adapter.directions[site] for site in sites},
        lora_B={site: adapter.lora_B[site] for site in sites},
    )


@pytest.fixture(scope="module")
def bench(engine, tmp_path_factory) -> Bench:
    return Bench(engine("comfyui").run, tmp_path_factory.mktemp("comfyui"))


@pytest.mark.parametrize("family", RUN)
@pytest.mark.parametrize("kind", ["one", "stack"])
def test_its_weights_are_ours(bench: Bench, record, family: str, kind: str) -> None:
    adapters = bench.adapters[family][: 1 if kind == "one" else 2]
    expected = fused(bench.weights[family], adapters)
    found = compare(bench.weights[family], bench.after(family, kind), expected)
    assert found["deviation"] < ROUNDING and found["effect"] > 1e-2 and found["others_changed"] == 0
    made = bench.found[family, kind]
    assert made["restored"] and made["patches"] and not [line for line in made["messages"] if "not loaded" in line]
    name = family.removesuffix("-image")
    record("comfyui", name, how="run", loads="all", undo="exact")
    record("comfyui", name, **({"deviation": found["deviation"]} if kind == "one" else {"stack": found["deviation"]}))


@pytest.mark.parametrize("family", RUN)
def test_half_precision_is_rounded_once(bench: Bench, record, family: str) -> None:
    before = bench.after(family, "bfloat16", before=True)
    sites = {f"{site.partition('.')[2]}.weight" for site in bench.adapters[family][0].sites}
    assert {before[name].dtype for name in sites} == {torch.bfloat16}
    exact = fused(bench.weights[family], bench.adapters[family][:1])
    after = bench.after(family, "bfloat16")
    for name in sites:
        rounding = float((before[name].double() - bench.weights[family][name].double()).abs().max())
        assert float((after[name].double() - exact[name].double()).abs().max()) < 4 * rounding + 1e-3
        assert not torch.equal(after[name], before[name])
    record("comfyui", family.removesuffix("-image"), bfloat16="rounded once from float32")


@pytest.mark.parametrize("family", RUN)
@pytest.mark.parametrize("kind", ["adapter", "diffusers", "kohya"])
def test_our_table_says_how_many_keys_it_reads(bench: Bench, family: str, kind: str) -> None:
    file = bench.jobs[family, kind]["loras"][0][0]
    reading = check_lora(file, engine="comfyui")
    unread = {line.removeprefix("lora key not loaded: ") for line in bench.found[family, kind]["messages"]
              if line.startswith("lora key not loaded")}  # fmt: skip
    assert set(reading.dropped) == unread, unread ^ set(reading.dropped)


def test_a_layer_that_nobody_edits_is_not_touched_on_float8(bench: Bench, record) -> None:
    """A layer of zeros is a patch, whose weight ComfyUI rounds again, stochastically; the export for it has none."""
    name = "double_blocks.0.img_attn.qkv.weight"
    patches = {kind: bench.found["hunyuan-video", f"float8 {kind}"]["patches"] for kind in ("zeros", "plain")}
    assert patches["zeros"] == patches["plain"] + 1
    before, after = (
        safetensors.torch.load_file(bench.jobs["hunyuan-video", "float8 plain"]["out"] + end) for end in (".before", "")
    )
    assert before[name].dtype == torch.float8_e4m3fn
    changed = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed == {f"double_blocks.{block}.txt_attn.qkv.weight" for block in (0, 1)}
    zeros = safetensors.torch.load_file(bench.jobs["hunyuan-video", "float8 zeros"]["out"])[name]
    moved = int((zeros.float() != before[name].float()).sum())
    assert moved > 0
    text = f"edited layers alone are rounded, stochastically; a layer of zeros would move {moved} elements"
    record("comfyui", "hunyuan-video", float8=text)
