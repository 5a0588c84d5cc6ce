"""A stack as a plain LoRA: what the numbers are, what the header says, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from forge import split
from reference import dense_edit
from tiny import tiny_wan_pipeline
from tiny_denoisers import TINY
from torch import Tensor, nn

from planted import direction, planted, snapshot
from unlearning_adapters import export_lora
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.errors import (
    AdapterFileError,
    AdapterNotFoundError,
    BaseMismatchError,
    ConfigError,
    FuseError,
    SiteError,
)
from unlearning_adapters.pipelines.sites import find_sites, site_module
from unlearning_adapters.runtime.joint.joint_edit import stack_directions

SITE = "transformer.blocks.0.attn2.to_k"
WAN = {"transformer": "WanTransformer3DModel", "transformer_2": "WanTransformer3DModel"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_wan_pipeline()


@pytest.fixture(scope="module")
def red(pipe) -> UnlearningAdapter:
    return of_wan(planted(pipe, "red", seed=1, strength=1.3))


@pytest.fixture(scope="module")
def left(pipe, red) -> UnlearningAdapter:
    """Overlaps with `red`, so that the joint edit is not the sum of both; of rank 2 at some sites."""
    adapter = of_wan(planted(pipe, "left", seed=2, strength=0.7))
    directions, factors = {}, {}
    for number, (site, own) in enumerate(adapter.directions.items()):
        read = own.read + 0.6 * red.directions[site].read
        write = own.write + 0.6 * red.directions[site].write
        mixed = Direction(read / (read @ write.T), write)
        rank_2 = direction(own.in_features, 2, seed=70 + number)
        directions[site] = rank_2 if site.endswith("to_v") else mixed
        weight = site_module(pipe, site).weight.detach()
        factors[site] = -0.7 * weight @ directions[site].write.T
    return replace(adapter, directions=directions, lora_B=factors)


def of_wan(adapter: UnlearningAdapter) -> UnlearningAdapter:
    return replace(adapter, info=replace(adapter.info, denoisers=WAN))


def tensors(file: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(file)


def record(file: Path) -> dict[str, Any]:
    header, _ = split(file.read_bytes())
    assert set(header["__metadata__"]) == {"format", "unlearning_export"}, "stock loaders execute other keys"
    return json.loads(header["__metadata__"]["unlearning_export"])


def deltas(file: Path) -> dict[str, Tensor]:
    """What the LoRA adds to each weight, in float64."""
    found = tensors(file)
    sites = [name.removesuffix(".lora_A.weight") for name in found if name.endswith("lora_A.weight")]
    return {
        site: found[f"{site}.lora_B.weight"].double() @ found[f"{site}.lora_A.weight"].double() for site in sites
    }  # fmt: skip


def joint(pipe, site: str, *adapters: UnlearningAdapter) -> Tensor:
    """The same by dense matrices in float64."""
    weight = site_module(pipe, site).weight.detach().double()
    here = [adapter for adapter in adapters if site in adapter.directions]
    reads, writes = (
        [getattr(adapter.directions[site], part).double().numpy() for adapter in here] for part in ("read", "write")
    )
    edit = dense_edit(reads, writes, [adapter.strength for adapter in here])
    return weight @ torch.from_numpy(edit) - weight


def refused(error: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=text) as caught:
        export_lora(*arguments, **options)
    assert "\n" not in str(caught.value)


# The numbers.


def test_one_adapter_is_its_own_lora(pipe, red, tmp_path) -> None:
    made = export_lora(red, tmp_path / "lora")
    found = tensors(made.file)
    assert made.file == tmp_path / "lora" / FILE_NAME and len(found) == 2 * len(red.sites) == 2 * made.layers
    for site in red.sites:
        assert torch.equal(found[f"{site}.lora_A.weight"], red.directions[site].read)
        torch.testing.assert_close(found[f"{site}.lora_B.weight"], red.lora_B[site])


@pytest.mark.parametrize("with_base", [False, True])
def test_a_stack_is_solved_jointly(pipe, red, left, tmp_path, with_base: bool) -> None:
    made = export_lora([red, left], tmp_path / "lora", base=pipe if with_base else None)
    found = deltas(made.file)
    assert set(found) == set(red.sites) | set(left.sites)
    for site, delta in found.items():
        expected = joint(pipe, site, red, left)
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)
        added = joint(pipe, site, red) + joint(pipe, site, left)
        assert (expected - added).abs().max() > 1e-2, "a sum would pass"


@pytest.mark.parametrize("with_base", [False, True])
def test_a_shrunk_stack_is_solved_as_it_acts(pipe, red, left, tmp_path, with_base: bool) -> None:
    shrunk = [
        replace(adapter, directions={site: replace(one, shrinkage=0.4) for site, one in adapter.directions.items()})
        for adapter in (red, left)
    ]
    exact = deltas(export_lora([red, left], tmp_path / "exact").file)
    found = deltas(export_lora(shrunk, tmp_path / "shrunk", base=pipe if with_base else None).file)
    both = set(red.sites) & set(left.sites)
    assert both and set(found) == set(exact)
    for site, delta in found.items():
        here = [adapter for adapter in shrunk if site in adapter.directions]
        edit = stack_directions([one.directions[site] for one in here], [one.strength for one in here])
        weight = site_module(pipe, site).weight.detach().double()
        torch.testing.assert_close(delta, -weight @ edit.mix.double() @ edit.read.double(), rtol=1e-4, atol=1e-6)
        assert site not in both or (delta - exact[site]).abs().max() > 1e-3


@pytest.mark.parametrize("with_base", [False, True])
def test_both_scopes_go_into_one_file(pipe, left, tmp_path, with_base: bool) -> None:
    """Word-scope and concept-scope adapters, in either order; edits at video tokens add up."""
    first, second = (of_wan(planted(pipe, f"c{seed}", seed=seed, strength=1.3, scope="concept")) for seed in (3, 4))
    stacks = ([first, left, second], [second, left, first])
    files = [
        export_lora(stack, tmp_path / f"{n}", base=pipe if with_base else None).file for n, stack in enumerate(stacks)
    ]
    found, other = (deltas(file) for file in files)
    assert set(found) == set(first.sites) > set(left.sites)
    for site, delta in found.items():
        torch.testing.assert_close(delta, other[site], rtol=1e-4, atol=1e-6)
        if site in first.additive:
            weight = site_module(pipe, site).weight.detach().double()
            added = sum(each.directions[site].write.T @ each.directions[site].read for each in (first, second)).double()
            torch.testing.assert_close(delta, -weight @ added, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(delta, joint(pipe, site, first, left, second), rtol=1e-4, atol=1e-5)


def test_the_first_releases_have_a_name_for_every_site_of_the_concept_scope_but_the_last_layer(pipe, tmp_path) -> None:
    whole = of_wan(planted(pipe, "c", seed=5, strength=1.3, scope="concept"))
    text = r"The layer 'proj_out' of WanTransformer3DModel has no name in the layout 'native'\. .* without it"
    refused(SiteError, text, whole, tmp_path / "x", layout="native")
    inside = [site for site in whole.sites if site != "transformer.proj_out"]
    parts = {name: {site: getattr(whole, name)[site] for site in inside} for name in ("directions", "lora_B")}
    found = deltas(export_lora(replace(whole, **parts), tmp_path / "native", layout="native").file)
    assert len(found) == len(inside) == len(whole.sites) - 1
    names = {"attn1.to_q": "self_attn.q", "attn1.to_v": "self_attn.v", "ffn.net.0.proj": "ffn.0"}
    for ours, theirs in names.items():
        site = f"transformer.blocks.1.{ours}"
        weight, each = site_module(pipe, site).weight.detach().double(), whole.directions[site]
        expected = -weight @ (each.write.T @ each.read).double()
        torch.testing.assert_close(found[f"diffusion_model.blocks.1.{theirs}"], expected, rtol=1e-4, atol=1e-5)


def test_the_order_does_not_matter_and_twice_is_once(red, left, tmp_path) -> None:
    one, other = (
        tensors(export_lora(pair, tmp_path / f"{number}.safetensors").file)
        for number, pair in enumerate(([red, left], [left, red]))
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.warns(UserWarning, match=r"'red' and 'red' remove nearly the same direction at 4 of 4 sites"):
        twice = tensors(export_lora([red, red], tmp_path / "twice").file)
    once = tensors(export_lora(red, tmp_path / "once").file)
    assert all(torch.equal(twice[name], once[name]) for name in once)


def test_strengths_take_the_place_of_those_in_the_files(pipe, red, left, tmp_path) -> None:
    made = export_lora([red, left], tmp_path / "lora", strengths=[0.5, None])
    assert made.strengths == (0.5, 0.7)
    for site, delta in deltas(made.file).items():
        torch.testing.assert_close(delta, joint(pipe, site, red.with_strength(0.5), left), rtol=1e-4, atol=1e-6)
    without = tensors(export_lora([red, left], tmp_path / "zero", strengths=[0.0, 0.7]).file)
    alone = tensors(export_lora(left, tmp_path / "alone").file)
    assert without.keys() == alone.keys() and all(torch.equal(without[name], alone[name]) for name in alone)


def test_all_layers_have_one_rank(red, left, tmp_path) -> None:
    made = export_lora([red, left], tmp_path / "lora")
    found = tensors(made.file)
    assert made.rank == 3
    assert {min(value.shape) if "lora_A" in name else value.shape[1] for name, value in found.items()} == {3}
    key = found[f"{SITE}.lora_A.weight"], found[f"{SITE}.lora_B.weight"]
    assert key[0][:2].any(dim=1).all() and not key[0][2:].any() and not key[1][:, 2:].any()


def test_files_folders_and_adapters_are_taken_alike(red, left, tmp_path) -> None:
    save_adapter(left, tmp_path / "no-left")
    mixed = export_lora([red, tmp_path / "no-left"], tmp_path / "mixed").file.read_bytes()
    folder = str(tmp_path / "no-left" / FILE_NAME)
    assert export_lora([red, folder], tmp_path / "again").file.read_bytes() == mixed
    assert export_lora([red, left], tmp_path / "third").file.read_bytes() == mixed


# Two denoisers.


def test_each_denoiser_goes_to_a_file_of_its_own_under_the_first_name(tmp_path) -> None:
    pipe = tiny_wan_pipeline(two_denoisers=True)
    adapter = of_wan(planted(pipe))
    refused(ConfigError, "The adapters edit transformer, transformer_2, and a LoRA file holds one", adapter, tmp_path)
    for component in ("transformer", "transformer_2"):
        file = export_lora(adapter, tmp_path / component, component=component).file
        for name, delta in deltas(file).items():
            site = name.replace("transformer.", f"{component}.")
            torch.testing.assert_close(delta, joint(pipe, site, adapter), rtol=1e-4, atol=1e-6)
        assert record(file)["component"] == component and len(tensors(file)) == len(adapter.sites)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(delta, joint(pipe, name, adapter), rtol=1e-4, atol=1e-6)


def test_a_component_that_an_adapter_does_not_edit_is_refused(red, tmp_path) -> None:
    text = "The adapter 'red' does not edit 'transformer_2', only transformer. Choose another `component`"
    refused(ConfigError, text, red, tmp_path, component="transformer_2")


# Another base.


def test_another_base_gets_its_own_factors(red, left, tmp_path) -> None:
    other = tiny_wan_pipeline(seed=5)
    other.register_to_config(_name_or_path="org/fine-tuned")
    made = export_lora([red, left], tmp_path / "lora", base=other)
    for site, delta in deltas(made.file).items():
        torch.testing.assert_close(delta, joint(other, site, red, left), rtol=1e-4, atol=1e-6)
    assert (made.base_model, record(made.file)["base_model"]) == ("org/fine-tuned", "org/fine-tuned")
    own = deltas(export_lora([red, left], tmp_path / "own").file)
    assert all((delta - own[site]).abs().max() > 1e-2 for site, delta in deltas(made.file).items())


def test_half_precision_weights_are_read_as_they_are(red, tmp_path) -> None:
    half = tiny_wan_pipeline(dtype=torch.bfloat16)
    for site, delta in deltas(export_lora(red, tmp_path / "lora", base=half).file).items():
        torch.testing.assert_close(delta, joint(half, site, red), rtol=1e-4, atol=1e-6)


def test_a_base_with_an_attached_or_fused_adapter_is_still_the_base(red, left, tmp_path) -> None:
    pipe = tiny_wan_pipeline()
    clean = export_lora(left, tmp_path / "clean", base=pipe).file.read_bytes()
    pipe.load_unlearning_adapter(red)
    before = snapshot(pipe)
    assert export_lora(left, tmp_path / "attached", base=pipe).file.read_bytes() == clean
    assert snapshot(pipe) == before
    pipe.fuse_unlearning_adapters()
    before = snapshot(pipe)
    assert export_lora(left, tmp_path / "fused", base=pipe).file.read_bytes() == clean
    assert snapshot(pipe) == before


@pytest.mark.parametrize("kind", ["int8", "offloaded"])
def test_a_base_whose_weights_cannot_be_read_is_refused(red, tmp_path, kind: str) -> None:
    pipe = tiny_wan_pipeline()
    layer = site_module(pipe, SITE)
    values = layer.weight.detach()
    layer.weight = {
        "int8": lambda: nn.Parameter((values * 100).to(torch.int8), requires_grad=False),
        "offloaded": lambda: nn.Parameter(values.to("meta"), requires_grad=False),
    }[kind]()
    text = rf"{SITE} cannot be computed, since its weight is quantised or offloaded out of reach. Load the base without"
    refused(FuseError, text, red, tmp_path / "x", base=pipe)
    assert not (tmp_path / "x").exists()


def test_a_quantised_base_is_asked_through_its_layers(red, tmp_path) -> None:
    pipe, known = tiny_wan_pipeline(), tiny_wan_pipeline()
    values = site_module(pipe, SITE).weight.detach().to(torch.float8_e4m3fn)
    site_module(pipe, SITE).weight = nn.Parameter(values, requires_grad=False)
    site_module(known, SITE).weight = nn.Parameter(values.float(), requires_grad=False)
    delta = deltas(export_lora(red, tmp_path / "lora", base=pipe).file)[SITE]
    torch.testing.assert_close(delta, joint(known, SITE, red), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(delta, joint(tiny_wan_pipeline(), SITE, red), rtol=1e-3)


def test_another_architecture_is_refused(red, tmp_path) -> None:
    ltx = next(tiny for tiny in TINY if tiny.model == "LTXVideoTransformer3DModel").pipe()
    text = "'red' was built on a WanTransformer3DModel, and transformer of the base is a LTXVideoTransformer3DModel"
    refused(BaseMismatchError, text, red, tmp_path, base=ltx)
    wide = tiny_wan_pipeline(heads=6)
    refused(
        BaseMismatchError, "was built for in_features = 48 at .*, and the pipeline has 72", red, tmp_path, base=wide
    )
    short = tiny_wan_pipeline(layers=1)
    refused(SiteError, "2 of the 4 sites are missing", red, tmp_path, base=short)
    two = of_wan(planted(tiny_wan_pipeline(two_denoisers=True)))
    text = "WanPipeline has no 'transformer_2', only transformer"
    refused(BaseMismatchError, text, two, tmp_path, component="transformer_2", base=tiny_wan_pipeline())


def test_adapters_of_two_bases_need_one(red, left, tmp_path, pipe) -> None:
    other = replace(left, info=replace(left.info, base_model="org/other", base_revision="a" * 40))
    text = f"'red' and 'left' were built on different bases, 'tiny/wan' and 'org/other' at '{'a' * 40}'. Pass the"
    refused(BaseMismatchError, text, [red, other], tmp_path)
    torch.testing.assert_close(
        deltas(export_lora([red, other], tmp_path / "lora", base=pipe).file)[SITE],
        joint(pipe, SITE, red, left), rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def test_without_factors_the_base_is_needed(red, tmp_path, pipe) -> None:
    for bare, found in (
        (replace(red, lora_B={}), "no stock factor for"),
        (red.with_strength(0.0), "strength 0 in its"),
    ):
        text = f"The LoRA of the adapter 'red' cannot be computed without its base: it has {found}"
        refused(FuseError, text, bare, tmp_path / "x", strengths=1.3)
        delta = deltas(export_lora(bare, tmp_path / found, strengths=1.3, base=pipe).file)[SITE]
        torch.testing.assert_close(delta, joint(pipe, SITE, red), rtol=1e-4, atol=1e-6)


# The file.


def test_the_record_says_what_it_is_made_of(red, left, tmp_path) -> None:
    made = export_lora([red, left], tmp_path / "lora", strengths=[0.5, 1.0])
    found = record(made.file)
    versions = found.pop("versions")
    assert list(versions) == ["unlearning-adapters"]
    section = (
        (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8").partition("## 10. ")[2]
    )
    listed = re.findall(
        r"^  \| (`[^|]+`) \| .* \|$", section.partition("###")[0].partition("| key |")[2], flags=re.MULTILINE
    )
    assert sorted(re.findall(r"`(\w+)`", " ".join(listed))) == sorted([*found, "versions"])
    origin = {"method": "ridge", "base_model": "tiny/wan", "base_revision": "", "pairs_hash": ""}
    assert found == {
        "export_version": 2,
        "layout": "diffusers",
        "engine": "",
        "loras": [],
        "left_out": [],
        "component": "transformer",
        "denoiser": "WanTransformer3DModel",
        "base_model": "tiny/wan",
        "base_revision": "",
        "adapters": [{"concept": "red", "strength": 0.5, **origin}, {"concept": "left", "strength": 1.0, **origin}],
    }


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_our_own_loader_says_what_the_file_is(red, left, tmp_path, layout: str) -> None:
    file = export_lora([red, left], tmp_path, layout=layout).file
    text = (
        r"it is a LoRA that was exported from \['red', 'left'\], for one base at fixed strengths. "
        "Load it with pipe.load_lora_weights, or load the adapters that it was made of."
    )
    for reader in (load_adapter, inspect_adapter, tiny_wan_pipeline().load_unlearning_adapter):
        with pytest.raises(AdapterFileError, match=text):
            reader(file)


def test_the_same_stack_gives_the_same_bytes_and_comfyui_the_same_numbers(red, tmp_path) -> None:
    one, two = (export_lora(red, tmp_path / name).file.read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert one == two
    other = tensors(export_lora(red, tmp_path / "c", layout="comfyui").file)
    found = tensors(tmp_path / "a.safetensors")
    assert set(other) == {
        name.replace("transformer.", "diffusion_model.").replace("attn2.to_", "cross_attn.") for name in found
    }
    assert sorted(map(str, other.values())) == sorted(map(str, found.values()))


def test_what_is_there_is_not_overwritten(red, tmp_path) -> None:
    save_adapter(red, tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    for place in (tmp_path, tmp_path / FILE_NAME):
        refused(AdapterFileError, f"{FILE_NAME}' exists already and was not changed. Choose another", red, place)
    (tmp_path / "x.txt").write_text("mine")
    refused(AdapterFileError, "x.txt': adapters are .safetensors files", red, tmp_path / "x.txt")
    assert (tmp_path / FILE_NAME).read_bytes() == before and (tmp_path / "x.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, "x.txt"]


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ConfigError, "one of diffusers, native, .*, but got 'lycoris'", {"layout": "lycoris"}),
        (ConfigError, "one strength for each of 2 adapters, but got 1", {"strengths": [1.0]}),
        (ConfigError, "All strengths are 0", {"strengths": 0.0}),
        (ConfigError, "from 0 \\(off\\) to 4, but got 5.0", {"strengths": [5.0, 1.0]}),
    ],
)
def test_settings_out_of_range_leave_no_trace(red, left, tmp_path, error, text: str, options: dict) -> None:
    refused(error, text, [red, left], tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_missing_and_foreign_sources_leave_no_trace(red, tmp_path) -> None:
    refused(AdapterNotFoundError, "No unlearning adapter at", tmp_path / "none.safetensors", tmp_path / "x")
    refused(ConfigError, "at least one adapter", [], tmp_path / "x")
    lora = export_lora(red, tmp_path / "lora").file
    refused(AdapterFileError, "exported from 'red'", lora, tmp_path / "x")
    sana = next(tiny for tiny in TINY if tiny.model == "SanaVideoTransformer3DModel").pipe()
    adapter = planted(sana)
    named = replace(adapter, info=replace(adapter.info, denoisers={"transformer": "SanaVideoTransformer3DModel"}))
    refused(ConfigError, "not for SanaVideoTransformer3DModel", named, tmp_path / "x", layout="comfyui")
    assert not (tmp_path / "x").exists()


def test_a_lora_on_the_base_is_no_part_of_it(red, tmp_path) -> None:
    """The edit is made from the weights beneath; the other LoRA stays a LoRA of its own."""
    pipe = tiny_wan_pipeline()
    clean = export_lora(red, tmp_path / "clean", base=pipe).file.read_bytes()
    sites = [site.name for site in find_sites(pipe)]
    pipe.load_lora_weights(
        {
            f"{s}.lora_{part}.weight": torch.ones(1, 48) if part == "A" else torch.ones(48, 1)
            for s in sites
            for part in "AB"
        }
    )
    assert export_lora(red, tmp_path / "again", base=pipe).file.read_bytes() == clean
