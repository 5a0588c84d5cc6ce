"""sglang, FastVideo, mlx-gen and Wan2GP: what their own maps of names and loaders read, and what our tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from engine_bench import FAMILIES, adapters_for, compare, fused
from tiny_denoisers import TINY

from planted import planted
from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.export.check import check_lora
from unlearning_adapters.export.engines import ENGINES
from unlearning_adapters.export.layouts import LAYOUTS as EVERY_LAYOUT
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.export.names.families import FAMILIES as NAMES
from unlearning_adapters.export.names.naming import expand
from unlearning_adapters.export.reading import read_keys
from unlearning_adapters.pipelines.sites import linear_layers

pytestmark = pytest.mark.engines
MODELS = {
    "wan": ("WanTransformer3DModel", "image keys"),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", ""),
    "hunyuan-video-1.5": ("HunyuanVideo15Transformer3DModel", ""),
    "kandinsky-5": ("Kandinsky5Transformer3DModel", ""),
}
SITES = {
    "wan": (
        "text",
        "transformer.blocks.*.attn2.add_*",
        "transformer.blocks.*.ffn.net.*",
        "transformer.blocks.*.attn1.*",
    ),
    "hunyuan-video": (
        "text",
        "transformer.transformer_blocks.*.attn.to_*",
        "transformer.transformer_blocks.*.ff.net.*",
    ),
    "hunyuan-video-1.5": ("text", "transformer.transformer_blocks.*.ff_context.net.*"),
    "kandinsky-5": ("text", "transformer.visual_transformer_blocks.*.feed_forward.*"),
}
LAYOUTS = ("native", "sglang", "diffusers", "native-for-diffusers")


def files_of(family: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Files of all kinds of sites in all layouts, and the layers of the model."""
    model, variant = MODELS[family]
    tiny = next(each for each in TINY if each.model == model and each.variant == variant)
    pipe = tiny.pipe()
    files = []
    for number, sites in enumerate(SITES[family]):
        adapter = planted(pipe, "red", sites=sites)
        adapter = replace(adapter, info=replace(adapter.info, denoisers={"transformer": model}))
        files.append(save_adapter(adapter, folder / f"{number}-adapter"))
        for layout in LAYOUTS:
            files.append(export_lora(adapter, folder / f"{number}-{layout}.safetensors", layout=layout).file)
    return files, [path for path, _ in linear_layers(tiny.make())]


@pytest.mark.parametrize(
    ("name", "family"),
    [("sglang", "wan"), ("sglang", "hunyuan-video"), ("fastvideo", "wan"), ("fastvideo", "hunyuan-video"),
     ("fastvideo", "hunyuan-video-1.5"), ("fastvideo", "kandinsky-5"), ("mlx-gen", "wan")],
)  # fmt: skip
def test_our_table_says_which_keys_it_reads(engine, record, tmp_path, name: str, family: str) -> None:
    files, layers = files_of(family, tmp_path)
    jobs = []
    for file in files:
        shapes = {key: list(value.shape) for key, value in safetensors.torch.load_file(file).items()}
        jobs.append({"family": family, "layers": layers, "keys": shapes})
    found = engine(name.replace("-", "_")).run(jobs, tmp_path)
    whole = 0
    for file, result in zip(files, found, strict=True):
        reading = check_lora(file, engine=name, family=family)
        assert sorted(reading.read) == result["read"], (file, set(reading.read) ^ set(result["read"]))
        whole += bool(result["read"])
    assert 2 <= whole < len(files)
    record(name, family, how="names run, layers read", loads="all but the layers that prepare the prompt")


@pytest.mark.parametrize("family", ["wan", "wan-vace", "hunyuan-video-1.5", "ltx-2"])
def test_stable_diffusion_cpp_turns_the_names_that_our_table_says(engine, record, tmp_path, family: str) -> None:
    """Its own map of names, compiled: each layer in each layout, with the suffix of PEFT, and without a prefix."""
    naming, denoiser = NAMES[family].native, NAMES[family].denoisers[0]
    paths = [path.replace("N", "3") for ours, _ in naming.rows for path in expand(ours)]
    layers = sorted({path.replace("N", "3") for _, theirs in naming.rows for path in expand(theirs)})
    jobs = []
    for layout in EVERY_LAYOUT.values():
        parts = [part for path in paths if (part := layout.names(denoiser, path))]
        names = list(dict.fromkeys(part.layer + suffix for part in parts for suffix in layout.suffixes))
        bare = [name.removeprefix("diffusion_model.").removeprefix("transformer.") for name in names]
        for keys in (names, [name.replace(".weight", ".default.weight") for name in names], bare):
            jobs.append({"family": family, "layers": layers, "keys": keys})
    counts = set()
    for job, result in zip(jobs, engine("sd_cpp").run(jobs, tmp_path), strict=True):
        reading = read_keys(ENGINES["sd.cpp"], family, ENGINES["sd.cpp"].reads[family], job["keys"])
        assert sorted(reading.read) == result["read"], set(reading.read) ^ set(result["read"])
        counts.add(len(result["read"]))
    assert 0 in counts and 2 * len(layers) in counts
    record("sd.cpp", family, how="names run, compiled from its source; layers read", loads="all")


def test_mmgp_reads_the_whole_file_or_refuses_it(engine, record, tmp_path) -> None:
    engine("comfyui").run([{"make": "wan", "out": str(tmp_path / "wan.safetensors")}], tmp_path)
    weights = FAMILIES["wan"].convert(safetensors.torch.load_file(tmp_path / "wan.safetensors"))
    adapters = adapters_for("wan", weights)
    files = {
        "one": export_lora(adapters[:1], tmp_path / "one", engine="wan2gp").file,
        "stack": export_lora(adapters, tmp_path / "stack", engine="wan2gp").file,
        "adapter": save_adapter(adapters[0], tmp_path / "adapter"),
        "diffusers": export_lora(adapters[0], tmp_path / "stock").file,
    }
    jobs = [
        {
            "weights": str(tmp_path / "wan.safetensors"),
            "loras": [[str(file), 1.0]],
            "out": str(tmp_path / f"out-{kind}"),
        }
        for kind, file in files.items()
    ]
    found = dict(zip(files, engine("wan2gp").run(jobs, tmp_path), strict=True))
    for kind, result in found.items():
        reading = check_lora(files[kind], engine="wan2gp")
        assert result["layers"] == len(reading.layers) and bool(result["errors"]) == bool(reading.dropped), kind
    for kind, number in (("one", 1), ("stack", 2)):
        after = FAMILIES["wan"].convert(safetensors.torch.load_file(tmp_path / f"out-{kind}"))
        result = compare(weights, after, fused(weights, adapters[:number]))
        assert result["deviation"] < 1e-6 and result["effect"] > 1e-2
        facts = {"deviation": result["deviation"]} if kind == "one" else {"stack": result["deviation"]}
        record("wan2gp", "wan", how="run: mmgp's loader", loads="all, or the file is refused", **facts)
