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
        "engine": "", "keys": 8, "keys_read": None, "left_out": [], "expert": "low_noise",
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
        "strengths": [1.5, 0.5], "fused": True,
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


def test_a_checkpoint_that_cannot_be_written_leaves_no_draft(made, tmp_path, unlearn, monkeypatch) -> None:
    def full(pipe: DiffusionPipeline, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiffusionPipeline, "save_pretrained", full)
    code, _, err = unlearn("export", made["no-red"], "--fused", "--base", made["base"], "-o", tmp_path / "edited")
    assert code == 1 and "No space left" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_layouts_of_the_options_are_those_of_the_function() -> None:
    for layout in (*LAYOUTS, *ALIASES):
        assert parsed("export", "x", "-o", "y", "--layout", layout)["layout"] == layout
    with pytest.raises(click.BadParameter, match="'latin' is not one of 'diffusers', 'native'"):
        parsed("export", "x", "-o", "y", "--layout", "latin")
