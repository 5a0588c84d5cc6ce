"""`unlearn export`: it writes what the Python calls write, and refuses in one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from command_line import parsed
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import tiny_wan_pipeline

from planted import output, planted
from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.export.layouts import ALIASES, LAYOUTS
from unlearning_adapters.export.lora import export_lora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pipeline in a folder, another of the same architecture, and two adapters of the first."""
    folder = tmp_path_factory.mktemp("made")
    pipe = tiny_wan_pipeline(two_denoisers=True)
    pipe.save_pretrained(folder / "base")
    tiny_wan_pipeline(two_denoisers=True, seed=7).save_pretrained(folder / "other")
    kinds = dict.fromkeys(("transformer", "transformer_2"), "WanTransformer3DModel")
    for seed, concept in enumerate(("red", "left"), start=1):
        adapter = planted(pipe, concept, seed=seed, strength=1.0 + seed / 10)
        save_adapter(replace(adapter, info=replace(adapter.info, denoisers=kinds)), folder / f"no-{concept}")
    return {name: folder / name for name in ("base", "other", "no-red", "no-left")}


def test_a_lora_is_that_of_the_python_call(made, tmp_path, unlearn) -> None:
    adapters = [made["no-red"], made["no-left"]]
    call = [
        "export",
        *adapters,
        "-o",
        tmp_path / "lora",
        "--component",
        "transformer_2",
        "--strength",
        1.5,
        "--strength",
        0.5,
    ]
    code, out, err = unlearn(*call, "--layout", "comfyui", "--json")
    assert (code, err) == (0, "")
    python = export_lora(
        adapters, tmp_path / "python", component="transformer_2", strengths=[1.5, 0.5], layout="comfyui"
    )
    file = tmp_path / "lora" / FILE_NAME
    assert file.read_bytes() == python.file.read_bytes()
    assert json.loads(out) == {
        "file": str(file), "bytes": file.stat().st_size, "component": "transformer_2", "layout": "native",
        "base_model": "tiny/wan", "concepts": ["red", "left"], "strengths": [1.5, 0.5], "layers": 4, "rank": 2,
        "engine": "", "keys": 8, "keys_read": None, "left_out": [], "expert": "low_noise", "instructions": "",
    }  # fmt: skip


def test_a_base_is_opened_and_named(made, tmp_path, unlearn) -> None:
    call = ["export", made["no-red"], "--component", "transformer", "-o"]
    code, out, _ = unlearn(*call, tmp_path / "lora.safetensors", "--base", made["other"])
    assert code == 0
    assert re.fullmatch(
        r"\S+lora\.safetensors: LoRA of red \(1\.1\) for transformer of other, names of diffusers, rank 1, "
        r"4 layers, [\d,]+ bytes\n",
        out,
    )
    assert unlearn(*call, tmp_path / "own.safetensors")[0] == 0
    assert (tmp_path / "own.safetensors").read_bytes() != (tmp_path / "lora.safetensors").read_bytes()


def test_a_fused_pipeline_is_a_checkpoint_of_diffusers(made, tmp_path, unlearn) -> None:
    call = ["export", made["no-red"], made["no-left"], "--fused", "--base", made["base"], "-o", tmp_path / "edited"]
    code, out, _ = unlearn(*call, "--strength", 1.5, "--strength", 0.5, "--json")
    assert code == 0
    assert json.loads(out) == {
        "folder": str(tmp_path / "edited"), "base": str(made["base"]), "concepts": ["red", "left"],
        "strengths": [1.5, 0.5], "fused": True, "layers": 8, "files": len(list((tmp_path / "edited").rglob("*.*"))) - 1,
        "deviation": pytest.approx(1e-7, abs=1e-6), "commit": "",
    }  # fmt: skip
    pipe = tiny_wan_pipeline(two_denoisers=True)
    base = {component: output(pipe, component) for component in ("transformer", "transformer_2")}
    pipe.load_unlearning_adapter(made["no-red"], strength=1.5)
    pipe.load_unlearning_adapter(made["no-left"], strength=0.5)
    pipe.fuse_unlearning_adapters()
    saved = DiffusionPipeline.from_pretrained(tmp_path / "edited")
    for component, before in base.items():
        weights = getattr(saved, component).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in getattr(pipe, component).state_dict().items())
        assert (output(saved, component) - before).abs().max() > 1e-2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited"], "no draft is left"
    assert not list((tmp_path / "edited").rglob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("{no-red} -o {tmp}/x", "edit transformer, transformer_2, and a LoRA file holds one denoiser. Name it with"),
        ("{no-red} -o {tmp}/taken --component transformer", "exists already and was not changed"),
        ("{no-red} -o {tmp}/x --component unet", "'red' does not edit 'unet', only transformer, transformer_2"),
        ("{no-red} -o {tmp}/x --component transformer --strength 1 --strength 2", "for each of 1 adapters, but got 2"),
        ("{tmp}/none -o {tmp}/x", "No unlearning adapter at .*none"),
        ("{no-red} -o {tmp}/x --component transformer --base {tmp}", "no model_index.json"),
        ("{no-red} -o {tmp}/x --fused", "--fused writes a whole pipeline and needs one to edit. Name it with --base"),
        ("{no-red} -o {tmp}/x --fused --base {base} --layout comfyui", "--fused .* takes no --layout. Leave it out"),
        ("{no-red} -o {tmp}/x --fused --base {base} --engine sglang", "--fused .* takes no --engine"),
        ("{no-red} -o {tmp}/x --push-to org/x --component transformer", "--push-to uploads a whole pipeline. Add"),
        ("{no-red} -o {tmp}/x --fused --base {base} --component unet", "--fused .* takes no --component"),
        ("{no-red} -o {tmp}/taken --fused --base {base}", "taken' exists already and was not changed. Choose another"),
        ("{no-red} -o {tmp}/x --fused --base {base} --strength 1 --strength 2", "Got 2 values of --strength for 1"),
        ("{tmp}/none -o {tmp}/x --fused --base {base}", "No unlearning adapter at .*none"),
    ],
)
def test_refusals_are_one_line_and_leave_no_trace(made, tmp_path, unlearn, arguments: str, text: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / FILE_NAME).write_bytes(b"mine")
    call = arguments.format(tmp=tmp_path, **made).split()
    code, out, err = unlearn("export", *call)
    assert (code, out) == (1, "")
    assert re.search(text, err.splitlines()[-1]) and err.splitlines()[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / FILE_NAME).read_bytes() == b"mine"


def test_a_fused_pipeline_can_be_cast(made, tmp_path, unlearn) -> None:
    call = ["export", made["no-red"], "--fused", "--base", made["base"], "-o", tmp_path / "edited"]
    assert unlearn(*call, "--dtype", "bfloat16", "--device", "cpu")[0] == 0
    saved = load_file(tmp_path / "edited" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved["blocks.0.attn2.to_k.weight"].dtype == torch.bfloat16


def test_an_engine_gets_a_file_for_each_denoiser_and_the_line_that_loads_them(made, tmp_path, unlearn) -> None:
    code, out, err = unlearn(
        "export", made["no-red"], made["no-left"], "--engine", "diffsynth", "-o", tmp_path / "lora"
    )
    assert (code, err) == (0, "")
    high, low = (tmp_path / "lora" / f"without-red-left-joint_{name}_noise.safetensors" for name in ("high", "low"))
    assert high.is_file() and low.is_file() and out.count("8 of 8 keys are read by diffsynth") == 2
    assert out.endswith(
        f'In diffsynth:\npipe.load_lora(pipe.dit, "{high}", alpha=1)\npipe.load_lora(pipe.dit2, "{low}", alpha=1)\n'
    )
    code, out, _ = unlearn("check", high, "--engine", "diffsynth")
    assert code == 0
    assert out == f"{high}: 8 of 8 keys are read by DiffSynth-Studio 2.1.12 (wan, 4 layers)\n"


def test_a_file_that_an_engine_would_ignore_is_checked_and_refused(made, tmp_path, unlearn) -> None:
    file = made["no-red"] / FILE_NAME
    code, out, _ = unlearn("check", file, "--engine", "comfyui", "--json")
    found = json.loads(out)
    assert code == 1 and (found["keys"], found["keys_read"], found["family"]) == (24, 0, "wan")
    code, out, _ = unlearn("check", file, "--engine", "mlx")
    assert "0 of 24 keys are read by mlx-video-with-audio 0.1.37" in out
    assert re.search(r"16 not read, such as transformer\.blocks.*: ", out) and "it is no LoRA factor" in out
    call = ["export", made["no-red"], "--component", "transformer", "--engine", "comfyui", "--layout", "diffusers"]
    code, out, err = unlearn(*call, "-o", tmp_path / "x")
    assert (code, out) == (1, "") and "would not read 4 of 4 layers in the layout 'diffusers'" in err


def test_other_loras_are_folded_in(made, tmp_path, unlearn) -> None:
    site = "transformer.blocks.0.attn1.to_q"
    style = {f"{site}.lora_A.weight": torch.ones(1, 48), f"{site}.lora_B.weight": torch.ones(48, 1)}
    save_file(style, tmp_path / "style.safetensors")
    call = ["export", made["no-red"], "--component", "transformer", "--with", tmp_path / "style.safetensors"]
    code, _, _ = unlearn(*call, "--scale", 0.5, "-o", tmp_path / "both.safetensors")
    both = load_file(tmp_path / "both.safetensors")
    assert code == 0 and torch.equal(both[f"{site}.lora_B.weight"], torch.full((48, 1), 0.5))
    code, _, err = unlearn(*call, "--scale", 0.5, "--scale", 1, "-o", tmp_path / "x")
    assert code == 1 and "Got 2 values of --scale for 1 of --with" in err


def test_the_layouts_of_the_options_are_those_of_the_function() -> None:
    for layout in (*LAYOUTS, *ALIASES):
        assert parsed("export", "x", "-o", "y", "--layout", layout)["layout"] == layout
    with pytest.raises(click.BadParameter, match="'latin' is not one of 'diffusers', 'native'"):
        parsed("export", "x", "-o", "y", "--layout", "latin")
