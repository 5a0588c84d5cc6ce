"""diffusers and PEFT, in the environment of the tests: they load what is exported for them, and give our weights."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import peft
import pytest
import torch
from tiny_denoisers import TINY

from planted import planted
from unlearning_adapters.export.for_engine import export_for_engine
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.pipelines.sites import base_linear, find_sites
from unlearning_adapters.runtime.joint.joint_edit import edited_weight, stack_directions

pytestmark = pytest.mark.engines
FAMILIES = {
    "wan": ("WanTransformer3DModel", "image keys"),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", ""),
    "hunyuan-video-1.5": ("HunyuanVideo15Transformer3DModel", ""),
    "ltx": ("LTXVideoTransformer3DModel", ""),
    "ltx-2": ("LTX2VideoTransformer3DModel", ""),
    "mochi": ("MochiTransformer3DModel", ""),
    "kandinsky-5": ("Kandinsky5Transformer3DModel", ""),
    "cogvideox": ("CogVideoXTransformer3DModel", ""),
}


def made(family: str):
    model, variant = FAMILIES[family]
    tiny = next(each for each in TINY if each.model == model and each.variant == variant)
    pipe = tiny.pipe()
    adapters = [
        replace(each, info=replace(each.info, denoisers={"transformer": model}))
        for each in (planted(pipe, "red", seed=1, strength=1.3), planted(pipe, "left", seed=2, strength=0.8))
    ]
    return tiny, adapters


def deviation(network, tiny, adapters) -> float:
    before, worst = tiny.make(), 0.0
    for site in adapters[0].sites:
        path = site.partition(".")[2]
        edit = stack_directions([each.directions[site] for each in adapters], [each.strength for each in adapters])
        weight = before.get_submodule(path).weight.detach()
        ours = edited_weight(weight, edit)
        theirs = base_linear(network.get_submodule(path)).weight.detach()
        assert (ours - weight).abs().max() > 1e-2
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_fuses_our_weights(record, tmp_path, family: str) -> None:
    tiny, adapters = made(family)
    for kind, chosen in (("deviation", adapters[:1]), ("stack", adapters)):
        file = export_lora(chosen, tmp_path / kind, engine="diffusers").file
        network = tiny.make()
        network.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="transformer", adapter_name="unlearn")
        network.fuse_lora()
        found = deviation(network, tiny, chosen)
        assert found < 1e-6
        how = "run: the denoiser's own loader; its pipelines have none" if family == "hunyuan-video-1.5" else "run"
        record("diffusers", family, how=how, loads="all", undo="exact: the factors stay apart", **{kind: found})
    assert version("diffusers") == "0.42.1"


@pytest.mark.parametrize("family", ["wan", "hunyuan-video-1.5", "ltx-2"])
def test_peft_merges_our_weights(record, tmp_path, family: str) -> None:
    tiny, adapters = made(family)
    folder = export_for_engine(adapters, tmp_path / "lora", engine="vllm-omni-request").loras[0].file.parent
    network = peft.PeftModel.from_pretrained(tiny.make(), folder).merge_and_unload()
    found = deviation(network, tiny, adapters)
    assert found < 1e-6
    record("peft", family, how="run: PeftModel.from_pretrained on the folder", loads="all", stack=found)
    untouched = {site.name for site in find_sites(tiny.pipe(), "*")} - set(adapters[0].sites)
    fresh = tiny.make()
    for path in [name.partition(".")[2] for name in sorted(untouched)[:3]]:
        assert torch.equal(network.get_submodule(path).weight, fresh.get_submodule(path).weight)
