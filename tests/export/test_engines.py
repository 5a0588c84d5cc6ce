"""What engines read: each rule of an exported file with its reason, and what the tables say of files of all layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cases.hunyuan import make_text
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_wan_pipeline
from tiny_denoisers import TINY
from torch import Tensor

from planted import planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import AdapterFileError, ConfigError, EngineError
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.engines import ENGINES, Engine, Reads, engine_named
from unlearning_adapters.export.for_engine import export_for_engine
from unlearning_adapters.export.layouts import LAYOUTS, Layout
from unlearning_adapters.export.layouts.fused_layers import factors_in
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.export.names.families import FAMILIES
from unlearning_adapters.export.names.naming import Naming, Part, expand
from unlearning_adapters.export.reading import guess_family, read_keys

PAIRS = [(engine, family) for engine in ENGINES.values() for family in engine.reads]
IDS = [f"{engine.name}/{family}" for engine, family in PAIRS]


def tiny(model: str, variant: str = ""):
    return next(each for each in TINY if each.model == model and each.variant == variant)


def adapter_of(model: str, variant: str = "", sites: str = "text", seed: int = 1) -> UnlearningAdapter:
    adapter = planted(tiny(model, variant).pipe(), "red", seed=seed, sites=sites)
    return replace(adapter, info=replace(adapter.info, denoisers={"transformer": model}))


def only(adapter: UnlearningAdapter, end: str) -> UnlearningAdapter:
    sites = [site for site in adapter.sites if site.endswith(end)]
    return replace(
        adapter,
        directions={site: adapter.directions[site] for site in sites},
        lora_B={site: adapter.lora_B[site] for site in sites},
    )


def wan_of_two() -> UnlearningAdapter:
    adapter = planted(tiny_wan_pipeline(two_denoisers=True), "red", seed=3)
    kinds = dict.fromkeys(("transformer", "transformer_2"), "WanTransformer3DModel")
    return replace(adapter, info=replace(adapter.info, denoisers=kinds))


def keys(layout: str, denoiser: str, *paths: str) -> list[str]:
    names = [LAYOUTS[layout].names(denoiser, path) for path in paths]
    return [part.layer + suffix for part in names if part for suffix in LAYOUTS[layout].suffixes]


def tensors(file: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(file)


# The tables.


@pytest.mark.parametrize(("engine", "family"), PAIRS, ids=IDS)
def test_an_engine_reads_all_of_its_layouts_and_nothing_of_a_foreign_one(engine: Engine, family: str) -> None:
    reads, denoiser = engine.reads[family], FAMILIES[family].denoisers[0]
    paths = {path for spelling in reads.spellings for row in spelling.rows for path in expand(row[0])}
    blocks = [path.replace("N", "3") for path in paths if "embed" not in path]
    assert len(blocks) >= 2 and reads.source and reads.layouts
    for layout in reads.layouts:
        factors = {
            path: (torch.ones(1, 4), torch.ones(4, 1)) for path in blocks if LAYOUTS[layout].names(denoiser, path)
        }
        named = factors_in(LAYOUTS[layout], denoiser, factors)
        names = [name + suffix for name in named for suffix in LAYOUTS[layout].suffixes]
        reading = read_keys(engine, family, reads, names)
        assert len(reading.read) >= 4 and (not reading.dropped or layout != reads.layouts[0]), reading.dropped
    foreign = [f"nowhere.{name}" for name in names]
    assert not read_keys(engine, family, reads, foreign).read


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("diffusers", "xdit", "vllm-omni")])
def test_seven_engines_and_more_read_nothing_of_the_stock_layout(name: str) -> None:
    """The names of diffusers after `transformer.` load in them without an error and change nothing."""
    engine = ENGINES[name]
    if "wan" not in engine.reads or "diffusers" in engine.reads["wan"].layouts or name in ("mlx-gen", "tensorrt-llm"):
        return
    attention = "attn1" if name == "kijai" else "attn2"  # kijai reads attn2, and would put attn1 onto the wrong layer
    names = keys("diffusers", "WanTransformer3DModel", *(f"blocks.0.{attention}.to_{leaf}" for leaf in "kv"))
    reading = read_keys(engine, "wan", engine.reads["wan"], names)
    assert not reading.read and len(reading.dropped) == 4


def test_importing_the_tables_and_checking_a_file_needs_no_torch(tmp_path) -> None:
    file = export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "x.safetensors", layout="native").file
    code = (
        "import sys; from unlearning_adapters.export.check import check_lora; "
        f"print(check_lora({str(file)!r}, engine='comfyui').summary); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("8 of 8 keys are read by ComfyUI")


# The rules of an exported file, each with its reason.


def test_a_file_has_no_alpha_and_nothing_beside_the_factors(tmp_path) -> None:
    """sd.cpp scales an alpha of rank 1 by the input's width, sglang cuts it to an integer, LTX ignores it; and Wan2GP
    and vLLM-Omni refuse a file with another tensor."""
    adapter = adapter_of("WanTransformer3DModel")
    for number, layout in enumerate(LAYOUTS):
        file = export_lora(adapter, tmp_path / str(number), layout=layout).file
        ends = LAYOUTS[layout].suffixes
        assert all(name.endswith(ends) for name in tensors(file)) and len(tensors(file)) == 8


def test_a_file_is_float32(tmp_path) -> None:
    """DiffSynth, LightX2V and mmgp cast the factors before they multiply: half a file would be rounded twice."""
    for number, engine in enumerate(("comfyui", "sglang", "wan2gp")):
        file = export_lora(adapter_of("WanTransformer3DModel"), tmp_path / str(number), engine=engine).file
        assert {value.dtype for value in tensors(file).values()} == {torch.float32}


def test_a_prefix_is_always_there(tmp_path) -> None:
    """sglang takes bare `double_blocks` for FLUX, and sd.cpp's high-noise path needs the prefix."""
    hunyuan = only(adapter_of("HunyuanVideoTransformer3DModel"), "_proj")
    file = export_lora(hunyuan, tmp_path, engine="sglang").file
    assert all(name.startswith("diffusion_model.double_blocks.") for name in tensors(file))
    bare = [name.removeprefix("diffusion_model.") for name in tensors(file)]
    assert not read_keys(ENGINES["sglang"], "hunyuan-video", ENGINES["sglang"].reads["hunyuan-video"], bare).read


def test_comfyui_gets_no_layer_of_zeros(tmp_path) -> None:
    """Its stochastic rounding moves a float8 layer that a patch of zeros touches; diffusers' converter needs one."""
    hunyuan = only(adapter_of("HunyuanVideoTransformer3DModel"), "_proj")
    file = export_lora(hunyuan, tmp_path / "comfyui", engine="comfyui").file
    assert {name.partition("blocks.")[2][2:14] for name in tensors(file)} == {"txt_attn_qkv"}
    assert all(value.any() for value in tensors(file).values())
    other = export_lora(hunyuan, tmp_path / "both.safetensors", layout="native-for-diffusers").file
    added = tensors(other).keys() - tensors(file).keys()
    assert added == {f"diffusion_model.double_blocks.0.img_attn_qkv.lora_{part}.weight" for part in "AB"}
    assert not any(tensors(other)[name].any() for name in added)
    assert check_lora(other, engine="diffusers").summary.startswith(f"{len(tensors(other))} of {len(tensors(other))}")
    reading = check_lora(file, engine="diffusers")
    assert not reading.read and "no img_attn_qkv, by which it knows" in next(iter(reading.dropped.values()))


@pytest.mark.parametrize("engine", ["vllm-omni", "vllm-omni-request", "tensorrt-llm"])
def test_q_k_and_v_come_together_where_an_engine_fuses_them(tmp_path, engine: str) -> None:
    """A lone k of a fused layer is skipped there without a word; zeros for the others change nothing."""
    adapter = adapter_of("WanTransformer3DModel", sites="transformer.blocks.*.attn1.to_k")
    made = export_lora(adapter, tmp_path, engine=engine)
    found = tensors(made.file)
    leaves = {name.split(".attn1.")[1] for name in found}
    assert leaves == {f"to_{leaf}.lora_{part}.weight" for leaf in "qkv" for part in "AB"}
    assert made.keys_read == made.keys == len(found) == 12
    for name, value in found.items():
        assert value.any() == (".to_k." in name), name
    alone = [name for name in found if ".to_k." in name]
    reading = read_keys(ENGINES[engine], "wan", ENGINES[engine].reads["wan"], alone)
    assert not reading.read and "as one layer, and the file lacks" in next(iter(reading.dropped.values()))


@pytest.mark.parametrize("engine", ["sglang", "fastvideo"])
def test_layers_that_prepare_the_prompt_are_refused_where_no_lora_reaches_them(tmp_path, engine: str) -> None:
    adapter = adapter_of("HunyuanVideoTransformer3DModel")
    text = (
        r"would not read 1 of \d+ layers, such as context_embedder\.proj_in: it keeps LoRAs off the layers that "
        r"prepare the prompt\. Pass force=True \(--force\) to leave them out, which keeps what they remove; or build "
        r'the adapter without them, sites="text-in-blocks" \(--sites text-in-blocks\); or write a fused checkpoint'
    )
    with pytest.raises(EngineError, match=text):
        export_lora(adapter, tmp_path / "x", engine=engine)
    assert not (tmp_path / "x").exists()
    made = export_lora(adapter, tmp_path / "x", engine=engine, force=True)
    assert made.left_out == ("context_embedder.proj_in",) and made.keys_read == made.keys
    assert not any("txt_in" in name for name in tensors(made.file))
    whole = export_lora(adapter, tmp_path / "y", engine="comfyui")
    assert not whole.left_out and any("txt_in.input_embedder" in name for name in tensors(whole.file))


@pytest.mark.parametrize("engine", ["sglang", "fastvideo"])
def test_an_adapter_with_sites_in_the_blocks_alone_loses_nothing_in_served_engines(tmp_path, engine: str) -> None:
    """Built through the whole tiny HunyuanVideo, with the option and without it."""
    pipe, concept = make_text(), Concept("red", tuple(Pair(f"a red {x}", f"a blue {x}") for x in ("dog", "cat", "car")))
    config = BuildConfig(method="mean", sites="text-in-blocks", pairs=3)
    adapter = build_adapter(pipe, concept, config)
    made = export_lora(adapter, tmp_path / "blocks", engine=engine)
    assert made.left_out == () and made.keys_read == made.keys > 0
    every = build_adapter(pipe, concept, replace(config, sites=None))
    lost = set(every.sites) - set(adapter.sites)
    assert lost == {"transformer.context_embedder.proj_in"}
    with pytest.raises(EngineError, match="would not read 1 of .* such as context_embedder"):
        export_lora(every, tmp_path / "every", engine=engine)


@pytest.mark.parametrize("engine", ["sglang", "fastvideo", "comfyui", "tensorrt-llm"])
def test_image_keys_of_wan_are_spelled_as_the_engine_knows_them(tmp_path, engine: str) -> None:
    adapter = adapter_of("WanTransformer3DModel", "image keys", sites="transformer.blocks.*.attn2.add_k_proj")
    made = export_lora(adapter, tmp_path, engine=engine)
    name = {"comfyui": "cross_attn.k_img", "tensorrt-llm": "0.add_k_proj"}.get(engine, "attn2.add_k_proj")
    assert made.keys_read == made.keys == 4 and any(name in key for key in tensors(made.file))
    if engine in ("sglang", "fastvideo"):
        with pytest.raises(
            EngineError, match=r"would not read 2 of 2 layers .*Use sglang|would not read 2 of 2 layers"
        ):
            export_lora(adapter, tmp_path / "native.safetensors", engine=engine, layout="native")


def test_what_no_engine_reads_cannot_be_written_for_it(tmp_path) -> None:
    adapter = adapter_of("WanTransformer3DModel")
    with pytest.raises(
        EngineError, match=r"would not read 4 of 4 layers in the layout 'diffusers', such as .*Use native"
    ):
        export_lora(adapter, tmp_path / "x", engine="comfyui", layout="diffusers")
    with pytest.raises(EngineError, match="Use native"):  # nothing would be left
        export_lora(adapter, tmp_path / "x", engine="comfyui", layout="diffusers", force=True)
    cogvideox = adapter_of("CogVideoXTransformer3DModel")
    with pytest.raises(
        ConfigError,
        match=r"ComfyUI .* reads LoRA files of wan, .*, but none of cogvideox \(it has no such model: `comfy/ldm`\)",
    ):
        export_lora(cogvideox, tmp_path / "x", engine="comfyui")
    with pytest.raises(ConfigError, match="Expected `engine` to be one of diffusers, comfyui, .*, but got 'a1111'"):
        export_lora(adapter, tmp_path / "x", engine="a1111")
    assert not (tmp_path / "x").exists()


def test_the_folder_of_peft_has_its_configuration(tmp_path) -> None:
    made = export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "lora", engine="vllm-omni-request")
    assert made.file == tmp_path / "lora" / "adapter_model.safetensors"
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (1, 1, "LORA")
    assert "blocks.1.attn2.to_v" in config["target_modules"] and len(config["target_modules"]) == 4
    assert str(tmp_path / "lora") in made.instructions and "adapter_model" not in made.instructions
    with pytest.raises(AdapterFileError, match="is a folder, and .* a file. Name a folder"):
        export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "x.safetensors", layout="peft-folder")
    with pytest.raises(AdapterFileError, match="exists already"):
        export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "lora", layout="peft-folder")


# Two experts.


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if "wan" in engine.reads])
def test_each_expert_of_wan_gets_a_file_that_says_which(tmp_path, name: str) -> None:
    adapter, engine = wan_of_two(), ENGINES[name]
    if not engine.experts:
        with pytest.raises(EngineError, match="gives one LoRA to both denoisers .* write a fused checkpoint"):
            export_for_engine(adapter, tmp_path / "x", engine=name)
        assert not (tmp_path / "x").exists()
        return
    made = export_for_engine(adapter, tmp_path, engine=name)
    high, low = made.loras
    assert [lora.component for lora in made.loras] == ["transformer", "transformer_2"]
    assert [lora.expert for lora in made.loras] == ["high_noise", "low_noise"]
    if name != "diffusers":
        assert "high_noise" in str(high.file) and "low_noise" in str(low.file)
    assert not all(
        torch.equal(a, b) for a, b in zip(tensors(high.file).values(), tensors(low.file).values(), strict=True)
    )
    text = made.instructions
    if name not in ("diffusers", "xdit"):
        assert 0 <= text.find("high_noise") < text.rfind("low_noise"), text
    if name == "vllm-omni":
        assert f'lora_path=["{high.file}", "{low.file}"]' in text, "it matches them by position"


def test_an_export_of_a_stack_says_that_it_is_one(tmp_path) -> None:
    red = adapter_of("WanTransformer3DModel")
    left = adapter_of("WanTransformer3DModel", seed=2)
    left = replace(left, info=replace(left.info, concept="left turn"))
    made = export_lora([red, left], tmp_path, engine="comfyui")
    assert made.file.name == "without-red-left-turn-joint.safetensors"
    assert export_lora(red, tmp_path, engine="comfyui").file.name == "without-red.safetensors"


# Checks of files.


def test_a_file_of_anybody_is_checked(tmp_path) -> None:
    adapter = adapter_of("WanTransformer3DModel")
    ours = save_adapter(adapter, tmp_path)
    reading = check_lora(ours, engine="comfyui")
    assert reading.summary == "0 of 12 keys are read by ComfyUI 0.3.64"
    theirs = tmp_path / "theirs.safetensors"
    foreign = {
        "diffusion_model.blocks.0.cross_attn.k.lora_down.weight": torch.ones(2, 4),
        "diffusion_model.blocks.0.cross_attn.k.lora_up.weight": torch.ones(4, 2),
        "diffusion_model.blocks.0.cross_attn.k.alpha": torch.tensor(1.0),
        "diffusion_model.blocks.0.cross_attn.v.lora_down.weight": torch.ones(2, 4),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(4),
    }
    safetensors.torch.save_file(foreign, theirs)
    reading = check_lora(theirs, engine="comfyui")
    assert (len(reading.read), reading.total, reading.family) == (3, 5, "wan")
    assert reading.layers == ("blocks.0.attn2.to_k",)
    assert sorted(reading.dropped.values()) == ["it is no LoRA factor", "the other factor of its layer is missing"]
    assert reading.notes == ("the file has 1 alphas, and ComfyUI scales by alpha / rank",)
    refused = check_lora(theirs, engine="wan2gp")
    assert (
        not refused.read
        and "refuses a file with a tensor that it does not know" in refused.dropped[next(iter(foreign))]
    )


def test_a_model_says_which_layers_there_are(tmp_path) -> None:
    file = export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "x.safetensors", layout="native").file
    (tmp_path / "keys.json").write_text(json.dumps(["blocks.0.cross_attn.k.weight", "blocks.0.cross_attn.v.weight"]))
    reading = check_lora(file, engine="comfyui", model=tmp_path / "keys.json")
    assert len(reading.read) == 4 and set(reading.dropped.values()) == {
        "the model has no layer blocks.1.attn2.to_k",
        "the model has no layer blocks.1.attn2.to_v",
    }
    tiny_wan_pipeline().transformer.save_pretrained(tmp_path / "model")
    assert len(check_lora(file, engine="comfyui", model=tmp_path / "model").read) == 8
    with pytest.raises(ConfigError, match="holds no list of names"):
        (tmp_path / "keys.json").write_text('"x"')
        check_lora(file, engine="comfyui", model=tmp_path / "keys.json")


def test_an_engine_that_refuses_unknown_layers_takes_tensors_that_are_no_factors() -> None:
    """TensorRT-LLM raises for a factor whose layer it lacks, and passes over what is no factor at all."""
    engine, reads = ENGINES["tensorrt-llm"], ENGINES["tensorrt-llm"].reads["wan"]
    factors = keys("diffusers", "WanTransformer3DModel", "blocks.0.attn2.to_k")
    reading = read_keys(engine, "wan", reads, [*factors, "unlearning.transformer.blocks.0.attn2.to_k.lora_V"])
    assert sorted(reading.read) == sorted(factors) and len(reading.dropped) == 1
    unknown = [f"transformer.condition_embedder.text_embedder.linear_1.lora_{part}.weight" for part in "AB"]
    refused = read_keys(engine, "wan", reads, [*factors, *unknown])
    assert not refused.read and "refuses a file" in refused.dropped[factors[0]]


def test_names_of_kohya_are_read_where_they_stand_for_the_first_release() -> None:
    """mlx-gen knows `lora_unet_` before the first release's names, and before diffusers' names not."""
    engine, reads = ENGINES["mlx-gen"], ENGINES["mlx-gen"].reads["wan"]
    first = [f"lora_unet_blocks_0_cross_attn_k.lora_{end}.weight" for end in ("down", "up")]
    stock = [f"lora_unet_blocks_0_attn2_to_k.lora_{end}.weight" for end in ("down", "up")]
    assert sorted(read_keys(engine, "wan", reads, [*first, *stock]).read) == sorted(first)
    wrong = ["transformer.blocks.0.cross_attn.k.lora_A.weight", "transformer.blocks.0.cross_attn.k.lora_B.weight"]
    assert not read_keys(engine, "wan", reads, wrong).read


def test_a_file_of_no_known_model_is_refused(tmp_path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"lora_unet_input_blocks_1.lora_down.weight": torch.ones(1, 2)}, file)
    with pytest.raises(ConfigError, match="is for no model whose layers are known. Name its family"):
        check_lora(file, engine="comfyui")
    assert not check_lora(file, engine="comfyui", family="wan").read
    file.write_bytes(b"no")
    with pytest.raises(AdapterFileError, match="is not a safetensors file: it is cut off"):
        check_lora(file, engine="comfyui")


@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(["diffusers", "native", "kohya"]), st.data())
def test_the_family_is_told_by_the_names(family: str, layout: str, data: st.DataObject) -> None:
    denoiser = FAMILIES[family].denoisers[0]
    paths = [path.replace("N", "11") for ours, _ in FAMILIES[family].native.rows for path in expand(ours)]
    paths = [path for path in paths if LAYOUTS[layout].names(denoiser, path)]
    if not paths:
        return
    some = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=4, unique=True))
    names = keys(layout, denoiser, *some)
    guessed = guess_family(names)
    assert guessed is not None
    if guessed != family:  # both know all of these names
        assert all(FAMILIES[guessed].native.part(path) for path in some)


# Names.


@given(st.sampled_from(sorted(FAMILIES)), st.data(), st.integers(0, 60))
def test_names_go_there_and_back(family: str, data: st.DataObject, block: int) -> None:
    naming = FAMILIES[family].native
    ours, _ = data.draw(st.sampled_from(naming.rows))
    path = data.draw(st.sampled_from(expand(ours))).replace("N", str(block))
    part = naming.part(path)
    assert part is not None and naming.layers(part.layer)[part.number] == path
    assert len(naming.layers(part.layer)) == part.of


def test_patterns_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="stand for 3 and 2 layers"):
        Naming((("a.{q,k,v}", "b.{q,k}"),)).part("a.q")


# A layout of one's own.


def test_a_layout_is_a_file_and_a_line(tmp_path, monkeypatch) -> None:
    """The steps of docs/architecture.md: a `Layout` with its names, a line in `LAYOUTS`, and a line in an engine."""
    toy = Layout("toy", "names with a slash", lambda denoiser, path: Part(f"toy/{path}"), (".down", ".up"))
    monkeypatch.setitem(LAYOUTS, "toy", toy)
    made = export_lora(adapter_of("WanTransformer3DModel"), tmp_path / "x.safetensors", layout="toy")
    assert set(tensors(made.file)) == {
        f"toy/blocks.{block}.attn2.to_{leaf}{end}" for block in (0, 1) for leaf in "kv" for end in (".down", ".up")
    }
    assert made.layout == "toy" and made.layers == 4


def test_aliases_are_those_that_people_type() -> None:
    assert engine_named("mlx") is ENGINES["mlx-video"] and isinstance(ENGINES["xdit"].reads["wan"], Reads)
