"""The ComfyUI node pack without ComfyUI: which layers an adapter edits, how, and what is said of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from comfyui_pack import FOLDER, part
from huggingface_hub import constants
from loopback_hub import WRITE
from reference import dense_edit
from torch import Tensor, nn

from planted import direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.errors import AdapterNotFoundError, BaseMismatchError, ConfigError, DenoiserError, SiteError
from unlearning_adapters.hub.hub import push_adapter

layers, edits, report, source = part("layers"), part("edits"), part("report"), part("source")
WIDTH, HEIGHT = 12, 10


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEIGHT)


class Wan(nn.Module):
    """Modules as ComfyUI has them: Wan's text attention, and a layer of HunyuanVideo that is q, k and v."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.diffusion_model = nn.Module()
        block = nn.Module()
        block.cross_attn = nn.ModuleDict({"k": nn.Linear(WIDTH, HEIGHT), "v": nn.Linear(WIDTH, HEIGHT)})
        block.txt_attn = Attention()
        self.diffusion_model.blocks = nn.ModuleList([block])

    @property
    def names(self) -> dict[str, str]:
        """What ComfyUI's `model_lora_keys_unet` says of these modules."""
        known = {name.removesuffix(".weight"): name for name in self.state_dict() if name.endswith(".weight")}
        return {**known, "diffusion_model.double_blocks.0.txt_attn_qkv": "diffusion_model.blocks.0.txt_attn.qkv.weight"}

    def weight(self, path: str) -> Tensor | None:
        return self.get_submodule(path).weight.detach()


def adapter(
    weights: dict[str, Tensor], denoiser: str = "WanTransformer3DModel", seed: int = 0, concept: str = "red"
) -> UnlearningAdapter:
    """An adapter with directions of its own at each site and the factors of these weights."""
    directions = {site: direction(WIDTH, seed=100 * seed + place) for place, site in enumerate(weights)}
    factors = {
        site: directions[site].stock_factor(directions[site].write @ weight.T, 1.0).contiguous()
        for site, weight in weights.items()
    }
    kinds = dict.fromkeys((site.partition(".")[0] for site in weights), denoiser)
    return UnlearningAdapter(AdapterInfo(concept, "ridge", base_model="org/base", denoisers=kinds), directions, factors)


def wan_adapter(model: Wan, seed: int = 0, concept: str = "red", component: str = "transformer") -> UnlearningAdapter:
    weights = {f"{component}.blocks.0.attn2.to_{leaf}": model.weight(f"diffusion_model.blocks.0.cross_attn.{leaf}")
               for leaf in "kv"}  # fmt: skip
    return adapter(weights, seed=seed, concept=concept)


def matrix(directions: list[Direction], strengths: tuple[float, ...] = (1.0,)) -> Tensor:
    """The joint edit of some directions as a matrix, by another way."""
    reads, writes = ([getattr(each, name).double().numpy() for each in directions] for name in ("read", "write"))
    return torch.from_numpy(dense_edit(reads, writes, list(strengths)))


def loaded(model: Wan, one: UnlearningAdapter, strength: float = 1.0, choice: str = "auto") -> edits.Loaded:
    component, places, deviation = layers.choose_component(one, choice, model.names, model.weight)
    return edits.Loaded(one, strength, component, places, deviation)


def test_sites_have_the_names_of_the_first_release_or_the_models_own() -> None:
    model = Wan()
    one = wan_adapter(model)
    assert layers.places_of(one, "transformer", model.names) == {
        f"transformer.blocks.0.attn2.to_{leaf}": layers.Place(f"diffusion_model.blocks.0.cross_attn.{leaf}")
        for leaf in "kv"
    }
    own = adapter({"transformer.blocks.0.cross_attn.k": model.weight("diffusion_model.blocks.0.cross_attn.k")}, "Mine")
    assert [place.module for place in layers.places_of(own, "transformer", model.names).values()] == [
        "diffusion_model.blocks.0.cross_attn.k"
    ]
    rows = model.weight("diffusion_model.blocks.0.txt_attn.qkv")[HEIGHT : 2 * HEIGHT]
    fused = adapter({"transformer.transformer_blocks.0.attn.add_k_proj": rows}, "HunyuanVideoTransformer3DModel")
    (place,) = layers.places_of(fused, "transformer", model.names).values()
    assert place == layers.Place("diffusion_model.blocks.0.txt_attn.qkv", 1, 3)
    assert layers.deviation_of(fused, {fused.sites[0]: place}, model.weight) < 1e-5
    assert layers.Place("linear1", 3, 4).rows(3 * 12 + 48, 12) == slice(36, 84)
    assert layers.Place("linear1", 1, 4).rows(3 * 12 + 48, 12) == slice(12, 24)


@pytest.mark.parametrize("strengths", [(1.0, 0.5), (0.7, 1.3)])
def test_a_layer_answers_as_with_the_joint_edit_in_its_weight(strengths: tuple[float, float]) -> None:
    model = Wan()
    stack = [loaded(model, wan_adapter(model, seed, name), strength)
             for seed, name, strength in zip((0, 1), ("red", "left"), strengths, strict=True)]  # fmt: skip
    x, layer = torch.randn(5, WIDTH), model.get_submodule("diffusion_model.blocks.0.cross_attn.k")
    before, bits = layer(x), layer.weight.detach().clone()
    made = edits.solve(stack)
    directions = [each.adapter.directions["transformer.blocks.0.attn2.to_k"] for each in stack]
    expected = layer.weight.double() @ matrix(directions, strengths)
    with edits.editing(model, made):
        after = layer(x)
    assert torch.allclose(after.double(), x.double() @ expected.T + layer.bias.double(), atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)
    with edits.editing(model, edits.solve(stack[::-1])):
        assert torch.equal(layer(x), after)
    assert torch.equal(layer(x), before) and torch.equal(layer.weight, bits)
    assert not layer._forward_pre_hooks and not layer._forward_hooks


def test_what_lora_nodes_write_into_the_weight_reads_the_edited_input() -> None:
    model = Wan()
    one = loaded(model, wan_adapter(model))
    layer = model.get_submodule("diffusion_model.blocks.0.cross_attn.v")
    read = one.adapter.directions["transformer.blocks.0.attn2.to_v"].read
    with torch.no_grad():
        layer.weight += 5.0 * torch.ones(HEIGHT, 1) @ read  # a style that reads the concept
    x = read + 0.01 * torch.randn(4, WIDTH)
    with edits.editing(model, edits.solve([one])):
        after = layer(x)
    whole = layer.weight.double() @ matrix([one.adapter.directions["transformer.blocks.0.attn2.to_v"]])
    assert torch.allclose(after.double(), x.double() @ whole.T + layer.bias.double(), atol=1e-4)


@pytest.mark.parametrize("parts", ["k", "kv", "qkv"])
def test_parts_of_one_layer_read_inputs_of_their_own(parts: str) -> None:
    """q stays as it is where k and v alone are edited, though ComfyUI has them as one layer."""
    model = Wan()
    layer = model.get_submodule("diffusion_model.blocks.0.txt_attn.qkv")
    rows = {leaf: slice(number * HEIGHT, (number + 1) * HEIGHT) for number, leaf in enumerate("qkv")}
    weights = {
        f"transformer.transformer_blocks.0.attn.add_{leaf}_proj": layer.weight.detach()[rows[leaf]] for leaf in parts
    }
    one = loaded(model, adapter(weights, "HunyuanVideoTransformer3DModel"))
    x = torch.randn(2, 4, WIDTH)
    before = layer(x)
    with edits.editing(model, edits.solve([one])):
        after = layer(x)
    for leaf, place in rows.items():
        if leaf not in parts:
            assert torch.equal(after[..., place], before[..., place])
            continue
        there = one.adapter.directions[f"transformer.transformer_blocks.0.attn.add_{leaf}_proj"]
        whole = layer.weight[place].double() @ matrix([there])
        expected = x.double() @ whole.T + layer.bias[place].double()
        assert torch.allclose(after[..., place].double(), expected, atol=1e-5)
        assert not torch.allclose(after[..., place], before[..., place], atol=1e-3)


def test_one_edit_of_all_parts_needs_no_second_run() -> None:
    model = Wan()
    layer = model.get_submodule("diffusion_model.blocks.0.txt_attn.qkv")
    same = direction(WIDTH, seed=3)
    sites = [f"transformer.transformer_blocks.0.attn.add_{leaf}_proj" for leaf in "qkv"]
    info = AdapterInfo("red", "ridge", denoisers={"transformer": "HunyuanVideoTransformer3DModel"})
    one = loaded(model, UnlearningAdapter(info, dict.fromkeys(sites, same)))
    (edit,) = edits.solve([one]).values()
    assert edit.whole is not None
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    with edits.editing(model, {"diffusion_model.blocks.0.txt_attn.qkv": edit}):
        layer(torch.randn(2, WIDTH))
    assert calls == [1]


def test_a_file_of_another_model_is_refused() -> None:
    model = Wan()
    deep = adapter({f"transformer.blocks.{block}.attn2.to_k": torch.randn(HEIGHT, WIDTH) for block in (0, 7)})
    text = "The adapter 'red' is for another model: this one lacks 1 of its 2 layers, the first is "
    with pytest.raises(
        SiteError, match=re.escape(f"{text}'transformer.blocks.7.attn2.to_k'. It was built on org/base (WanT")
    ):
        loaded(model, deep)
    wide = adapter({"transformer.blocks.0.attn2.to_k": torch.randn(HEIGHT + 1, WIDTH)})
    with pytest.raises(BaseMismatchError, match=r"built for a weight of shape \(11, 12\), and .* has \(10, 12\)"):
        loaded(model, wide)
    with pytest.raises(ConfigError, match="edits no 'low_noise', only transformer. Choose one of these"):
        loaded(model, wan_adapter(model), choice="low_noise")


def test_auto_goes_by_the_weights_of_two_denoisers() -> None:
    high, low = Wan(0), Wan(1)
    parts = wan_adapter(high), wan_adapter(low, component="transformer_2")
    both = UnlearningAdapter(
        replace(parts[0].info, denoisers={**parts[0].info.denoisers, **parts[1].info.denoisers}),
        {**parts[0].directions, **parts[1].directions},
        {**parts[0].lora_B, **parts[1].lora_B},
    )
    assert [loaded(model, both).component for model in (high, low)] == ["transformer", "transformer_2"]
    assert loaded(low, both, choice="high_noise").deviation > layers.OTHER_BASE
    with pytest.raises(ConfigError, match="Set the denoiser to 'high_noise' or 'low_noise'"):
        loaded(Wan(2), both)
    unread = layers.choose_component(both, "low_noise", low.names, lambda _: None)
    assert unread[0] == "transformer_2" and unread[2] is None


def test_a_compiled_or_missing_layer_is_refused_and_no_hook_stays() -> None:
    model = Wan()
    made = edits.solve([loaded(model, wan_adapter(model))])
    block = model.diffusion_model.blocks[0]
    model.diffusion_model.blocks[0].cross_attn["v"] = torch.compile(block.cross_attn["v"])
    with (
        pytest.raises(DenoiserError, match="compiled model, which would go around the edit"),
        edits.editing(model, {**made, "diffusion_model.blocks.0.cross_attn.v.weight": next(iter(made.values()))}),
    ):
        pass
    assert not block.cross_attn["k"]._forward_pre_hooks
    with (
        pytest.raises(DenoiserError, match=r"no longer has the layer 'diffusion_model.blocks.9"),
        edits.editing(model, {"diffusion_model.blocks.9.k": next(iter(made.values()))}),
    ):
        pass


# The Hub.


@pytest.fixture
def pushed(hub, tmp_path, monkeypatch) -> dict[str, str]:
    """Two commits of one repository, an adapter of another seed in each."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commits = {}
    for seed, name in ((0, "old"), (1, "new")):
        url = push_adapter(wan_adapter(Wan(), seed), "org/no-red", token=WRITE)
        commits[name] = url.rsplit("/", 1)[1]
    hub.requests.clear()
    return commits


def test_a_node_loads_an_adapter_of_the_hub(pushed: dict[str, str], hub) -> None:
    """By name, at a commit and around blanks; the directions are those that were pushed, and edit the layer."""
    site, model = "transformer.blocks.0.attn2.to_k", Wan()
    for text, seed in (("org/no-red", 1), (f" org/no-red@{pushed['old']} ", 0), (f"org/no-red@{pushed['new']}", 1)):
        with torch.inference_mode():  # as its executor does
            found = source.open_adapter(None, text)
        assert torch.equal(found.directions[site].read, wan_adapter(model, seed).directions[site].read)
        assert not found.directions[site].read.is_inference()
    x, layer = torch.randn(5, WIDTH), model.get_submodule("diffusion_model.blocks.0.cross_attn.k")
    before = layer(x)
    with edits.editing(model, edits.solve([loaded(model, found)])):
        assert not torch.allclose(layer(x), before, atol=1e-3)
    assert any("/resolve/" in path for _, path, _, _ in hub.requests) and torch.equal(layer(x), before)


def test_a_hub_id_goes_before_the_file_and_a_wrong_one_is_named(pushed: dict[str, str], tmp_path) -> None:
    file = save_adapter(wan_adapter(Wan(), 5), tmp_path / "here.safetensors")
    site = "transformer.blocks.0.attn2.to_k"
    expected = wan_adapter(Wan(), 5).directions[site].read
    assert torch.equal(source.open_adapter(file, "").directions[site].read, expected)
    assert not torch.equal(source.open_adapter(file, "org/no-red").directions[site].read, expected)
    for text in ("org/no-red@", "@main"):
        with pytest.raises(ConfigError, match=f"to be org/name or org/name@revision, but got '{text}'"):
            source.open_adapter(file, text)
    with pytest.raises(ConfigError, match="No adapter is chosen. Choose a file of models/unlearning_adapters, or give"):
        source.open_adapter(None, " ")
    with pytest.raises(AdapterNotFoundError, match="org/none"):
        source.open_adapter(None, "org/none")
    with pytest.raises(AdapterNotFoundError, match="no-such-tag"):
        source.open_adapter(None, "org/no-red@no-such-tag")


def test_the_report_says_what_is_edited_and_what_is_left() -> None:
    model = Wan()
    stack = [loaded(model, wan_adapter(model, 0, "red"), 1.0), loaded(model, wan_adapter(model, 1, "left"), 0.25)]
    text = report.describe(stack, edits.solve(stack), "WanModel", {"diffusion_model.blocks.0.cross_attn.k"})
    assert text.splitlines() == [
        "WanModel: 2 adapters, solved jointly",
        "- red: strength 1, ridge, 2 layers (transformer); the weights are those it was built on (deviation 0.0%)",
        "- left: strength 0.25, ridge, 2 layers (transformer); the weights are those it was built on (deviation 0.0%)",
        "LoRAs change 1 layers, 1 of them edited: what they add reads the edited input.",
        "2 layers are edited; left of the directions there:",
        "  blocks.0.cross_attn.k  red 0%, left 75%",
        "  blocks.0.cross_attn.v  red 0%, left 75%",
    ]
    other = [loaded(Wan(1), stack[0].adapter)]
    assert "NOT THE WEIGHTS IT WAS BUILT ON" in report.describe(other, edits.solve(other), "WanModel")
    assert report.describe([], {}, "WanModel") == "WanModel: no unlearning adapter. No layer is edited."
    off = [replace(stack[0], strength=0.0)]
    assert edits.solve(off) == {} and "strength 0, ridge, 0 layers" in report.describe(off, {}, "WanModel")


def test_the_pack_needs_the_core_alone() -> None:
    """ComfyUI brings its own diffusion code: neither diffusers nor transformers is imported."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import comfyui_pack\n"
        "[comfyui_pack.part(name) for name in ('layers', 'edits', 'report', 'source')]\n"
        "print(sorted({'diffusers', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_workflow_is_whole() -> None:
    """Each link is where both of its nodes say; all four nodes' classes are known by name."""
    workflow = json.loads((FOLDER / "example_workflows" / "wan_text_to_video.json").read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"] and nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number and nodes[target]["inputs"][place]["type"] == kind
    mine = {node["type"] for node in workflow["nodes"] if node["type"].startswith("Unlearning")}
    code = (FOLDER / "comfy_nodes.py").read_text(encoding="utf-8")
    assert mine == {"UnlearningLoad", "UnlearningVerify", "UnlearningCompare"} and all(
        f'"{name}"' in code for name in mine
    )
