"""LoRA files in the hands of diffusers alone, for every family, in one process that never imports this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fresh import in_copy
from stock_process import tiny_named
from torch import Tensor

from planted import direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.pipelines.sites import find_sites, site_module
from unlearning_adapters.runtime.verbs import load_unlearning_adapter

ROUNDING = {"rtol": 1e-3, "atol": 1e-4}  # float32, outputs near 1
FAMILIES = {
    "WanPipeline": "WanTransformer3DModel",
    "WanImageToVideoPipeline": "WanTransformer3DModel (image keys)",
    "CogVideoXPipeline": "CogVideoXTransformer3DModel",
    "HunyuanVideoPipeline": "HunyuanVideoTransformer3DModel",
    "LTXPipeline": "LTXVideoTransformer3DModel",
    "LTX2Pipeline": "LTX2VideoTransformer3DModel",
    "MochiPipeline": "MochiTransformer3DModel",
    "SkyReelsV2Pipeline": "SkyReelsV2Transformer3DModel",
    "SanaVideoPipeline": "SanaVideoTransformer3DModel",
    "Kandinsky5T2VPipeline": "Kandinsky5Transformer3DModel",
    "AnimateDiffPipeline": "UNetMotionModel",
}
NATIVE = (
    "WanPipeline",
    "WanImageToVideoPipeline",
    "SkyReelsV2Pipeline",
    "HunyuanVideoPipeline",
    "LTXPipeline",
    "LTX2Pipeline",
)
WAN_2 = (("transformer", FAMILIES["WanPipeline"], 0), ("transformer_2", FAMILIES["WanPipeline"], 1))
INTO_SECOND = {"load_into_transformer_2": True}


@dataclass
class Parts:
    """As much of a pipeline as this package needs: its denoisers, each with a row of the table of tiny ones."""

    denoisers: Sequence[tuple[str, str, int]]

    def __post_init__(self) -> None:
        self.components = {component: tiny_named(name).make(seed) for component, name, seed in self.denoisers}

    def outputs(self) -> dict[str, Tensor]:
        return {c: tiny_named(name).run(self.components[c]) for c, name, _ in self.denoisers}


def of_family(pipeline: str) -> Parts:
    return Parts([(tiny_named(FAMILIES[pipeline]).component, FAMILIES[pipeline], 0)])


def adapter_for(pipe: Parts, concept: str, seed: int, strength: float) -> UnlearningAdapter:
    """Oblique directions of mixed ranks at all text sites; layers that read alike share one, as in built adapters."""
    directions, factors = {}, {}
    for site in find_sites(pipe):
        group = site.name.rpartition(".")[0]
        number = seed + sum(map(ord, group))
        rank = 1 + number % 2 if site.in_features > 4 else 1
        directions[site.name] = direction(site.in_features, rank, seed=number)
        weight = site_module(pipe, site.name).weight.double()
        factors[site.name] = (-strength * weight @ directions[site.name].write.double().T).float()
    kinds = {component: type(network).__name__ for component, network in pipe.components.items()}
    info = AdapterInfo(concept, "ridge", strength=strength, base_model="tiny/base", denoisers=kinds)
    return UnlearningAdapter(info, directions, factors)


class Bench:
    """Jobs for the other process, and what this package makes of the same adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs, self.expected, self.base = folder, [], {}, {}

    def add(self, name: str, pipeline: str, pipe: Parts, loads: list, adapters: Sequence[UnlearningAdapter]) -> None:
        self.base |= {f"{name}/{key}": value for key, value in pipe.outputs().items()}
        for adapter in adapters:
            load_unlearning_adapter(pipe, adapter)
        self.expected |= {f"{name}/{key}": value for key, value in pipe.outputs().items()}
        files = [(str(file), options) for file, options in loads]
        self.jobs.append({"id": name, "pipeline": pipeline, "denoisers": list(pipe.denoisers), "loads": files})

    def run(self) -> Mapping[str, Tensor]:
        (self.folder / "jobs.json").write_text(json.dumps(self.jobs))
        here = Path(__file__).resolve().parents[1] / "support"
        in_copy(here / "stock_process.py", self.folder / "jobs.json", self.folder / "result", path=[here])
        return safetensors.torch.load_file(self.folder / "result")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("stock"))
    for pipeline in FAMILIES:
        pipe = of_family(pipeline)
        red, left = adapter_for(pipe, "red", 0, 1.3), adapter_for(pipe, "left", 50, 0.8)
        saved = save_adapter(red, bench.folder / f"{pipeline}-red").parent
        bench.add(f"{pipeline}/file", pipeline, pipe, [(saved, {})], [red])
        lora = export_lora([red, left], bench.folder / f"{pipeline}-stack").file.parent
        bench.add(f"{pipeline}/stack", pipeline, of_family(pipeline), [(lora, {})], [red, left])
        if pipeline in NATIVE:
            lora = export_lora(
                [red, left], bench.folder / f"{pipeline}-native", layout="native-for-diffusers"
            ).file.parent
            bench.add(f"{pipeline}/native", pipeline, of_family(pipeline), [(lora, {})], [red, left])
    red = adapter_for(Parts(WAN_2), "red", 0, 1.3)
    for layout in ("diffusers", "native-for-diffusers"):
        first, second = (
            export_lora(red, bench.folder / f"{component}-{layout}", component=component, layout=layout).file.parent
            for component in ("transformer", "transformer_2")
        )
        loads = [(first, {}), (second, INTO_SECOND)]
        bench.add(f"WAN_2/{layout}", "WanPipeline", Parts(WAN_2), loads, [red])
    bench.found = bench.run()
    return bench


CASES = [
    *(f"{pipeline}/{kind}" for pipeline in FAMILIES for kind in ("file", "stack")),
    *(f"{pipeline}/native" for pipeline in NATIVE),
    *(f"WAN_2/{layout}" for layout in ("diffusers", "native-for-diffusers")),
]


@pytest.mark.parametrize("case", CASES)
def test_diffusers_alone_gives_our_output(bench: Bench, case: str) -> None:
    names = [name for name in bench.expected if name.rpartition("/")[0] == case]
    assert len(names) == (2 if case.startswith("WAN_2") else 1)
    for name in names:
        torch.testing.assert_close(bench.found[name], bench.expected[name], **ROUNDING)
        change = (bench.expected[name] - bench.base[name]).abs().max()
        assert change > 20 * (bench.found[name] - bench.expected[name]).abs().max(), "the edit is no more than rounding"
        assert not torch.allclose(bench.expected[name], bench.base[name], **ROUNDING), "the edit does nothing"


def test_the_stack_is_not_the_sum_of_its_files(bench: Bench) -> None:
    """Else loading both files one after the other would pass the test above."""
    pipe = of_family("WanPipeline")
    red, left = adapter_for(pipe, "red", 0, 1.3), adapter_for(pipe, "left", 50, 0.8)
    for site, weight in ((site.name, site_module(pipe, site.name).weight) for site in find_sites(pipe)):
        for adapter in (red, left):
            weight += adapter.lora_B[site] @ adapter.directions[site].read
    (added,) = pipe.outputs().values()
    assert not torch.allclose(added, bench.expected["WanPipeline/stack/transformer"], **ROUNDING)
