"""Our nodes in ComfyUI's own server, without a window, on a tiny Wan: what its samplers make of edited models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comfyui_server import Failed, Graph, Server, environment_of
from engine_bench import FAMILIES, adapters_for, fused, put_back
from loopback_hub import WRITE
from PIL import Image
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.hub.hub import push_adapter

pytestmark = pytest.mark.engines

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "integrations" / "comfyui"
WORKFLOW = PACK / "example_workflows" / "wan_text_to_video.json"
# How a prompt and a video of another model look: the width of its text, the node of its latents, and their size.
OTHERS = {
    "hunyuan-video": (64, "EmptyHunyuanLatentVideo", 32),
    "ltx": (4096, "EmptyLTXVLatentVideo", 64),
}
ROUNDING = 2e-5  # of a latent after three steps, against weights that hold the edit
MODEL, VERIFY, SAVED = "1", "7", "8"


class Bench:
    """A server with the models and files of these tests."""

    def __init__(self, engine: Any, folder: Path) -> None:
        models = folder / "models"
        for name in ("diffusion_models", "unlearning_adapters", "loras"):
            (models / name).mkdir(parents=True)
        (folder / "custom_nodes").mkdir()
        (folder / "custom_nodes" / "unlearning-adapters").symlink_to(PACK)
        (folder / "custom_nodes" / "tiny_parts").symlink_to(ROOT / "tests/engines/runners/comfyui_parts")
        base = models / "diffusion_models" / "tiny.safetensors"
        engine.run(
            [{"make": "wan", "out": str(base)}]
            + [{"make": name, "out": str(base.with_name(f"{name}.safetensors"))} for name in OTHERS],
            folder,
        )
        (folder / "custom_nodes" / "gguf").symlink_to(engine.facts["nodes"]["gguf"])
        gguf = models / "diffusion_models" / "tiny.gguf"
        engine.run([{"gguf": str(base), "out": str(gguf)}], folder)
        self.models, self.native = models, safetensors.torch.load_file(base)
        self.weights = FAMILIES["wan"].convert(dict(self.native))
        self.adapters = adapters_for("wan", self.weights)
        for adapter, name in zip(self.adapters, ("red", "left"), strict=True):
            save_adapter(adapter, models / "unlearning_adapters" / f"{name}.safetensors")
        self.folder = folder
        self.style = self._style()
        self._more_models()
        self._other_families()
        self._more_adapters()
        environment = environment_of(Path(__file__).parent / "stubs", ROOT / "src")
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}  # the Hub of these tests
        self.server = Server(engine.place / "bin" / "python", engine.facts["source"], folder, environment)

    def _style(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A LoRA that reads what the first adapter removes, and writes something visible."""
        style, tensors, maker = {}, {}, torch.Generator().manual_seed(5)
        for block in (0, 1):
            path = f"blocks.{block}.attn2.to_v"
            read = self.adapters[0].directions[f"transformer.{path}"].read
            write = torch.randn(len(self.weights[f"{path}.weight"]), 1, generator=maker)
            style[path] = read, write
            native = f"diffusion_model.blocks.{block}.cross_attn.v"
            tensors[f"{native}.lora_A.weight"], tensors[f"{native}.lora_B.weight"] = read, write
        safetensors.torch.save_file(tensors, self.models / "loras" / "style.safetensors")
        stock = export_lora(self.adapters[0], self.folder / "stock", engine="comfyui").file
        (self.models / "loras" / "red.safetensors").write_bytes(stock.read_bytes())
        return style

    def _more_models(self) -> None:
        """Models whose weights hold the edits; a second denoiser; one whose weights went through float8."""
        folder, styled = self.models / "diffusion_models", dict(self.weights)
        for path, (read, write) in self.style.items():
            styled[f"{path}.weight"] = styled[f"{path}.weight"] + write @ read
        self._save("one", fused(self.weights, self.adapters[:1]))
        self._save("stack", fused(self.weights, self.adapters))
        self._save(
            "styled", {**{k: styled[k] for k in styled if "attn2.to_v" in k}, **fused(styled, self.adapters[:1])}
        )
        small = {key: _float8(value) for key, value in self.weights.items()}
        self._save("float8 base", small)
        self._save("float8", {**small, **fused(small, self.adapters[:1])})
        exact = FAMILIES["wan"].convert(safetensors.torch.load_file(folder / "tiny.gguf.safetensors"))
        self._save("gguf", {**exact, **fused(exact, self.adapters[:1])})
        maker = torch.Generator().manual_seed(9)
        other = {k: v + 0.1 * torch.randn(v.shape, generator=maker) for k, v in self.native.items()}
        safetensors.torch.save_file(other, folder / "low_noise.safetensors")
        self.other = FAMILIES["wan"].convert(dict(other))

    def _save(self, name: str, changed: dict[str, Tensor]) -> None:
        """Write the model with some weights, by the names of diffusers, in place of its own."""
        weights = put_back("wan", self.native, changed)
        safetensors.torch.save_file(weights, self.models / "diffusion_models" / f"{name}.safetensors")

    def _other_families(self) -> None:
        """An adapter, a LoRA file, and a model whose weights hold the edit, of each."""
        models = self.models / "diffusion_models"
        for name in OTHERS:
            native = safetensors.torch.load_file(models / f"{name}.safetensors")
            weights = FAMILIES[name].convert(dict(native))
            adapter = adapters_for(name, weights)[0]
            save_adapter(adapter, self.models / "unlearning_adapters" / f"{name}.safetensors")
            file = export_lora(adapter, self.folder / "others" / name, engine="comfyui").file
            (self.models / "loras" / f"{name}.safetensors").write_bytes(file.read_bytes())
            edited = put_back(name, native, fused(weights, [adapter]))
            safetensors.torch.save_file(edited, models / f"{name} edited.safetensors")

    def _more_adapters(self) -> None:
        first, folder = self.adapters[0], self.models / "unlearning_adapters"
        deep = {site.replace("blocks.1.", "blocks.30."): value for site, value in first.directions.items()}
        factors = {site.replace("blocks.1.", "blocks.30."): value for site, value in first.lora_B.items()}
        save_adapter(UnlearningAdapter(first.info, deep, factors), folder / "deep.safetensors")
        kinds = {name: "WanTransformer3DModel" for name in ("transformer", "transformer_2")}
        second = adapters_for("wan", self.other, "transformer_2")[0]
        both = UnlearningAdapter(
            replace(first.info, denoisers=kinds),
            {**first.directions, **second.directions},
            {**first.lora_B, **second.lora_B},
        )
        save_adapter(both, folder / "both.safetensors")

    def latents(self, graph: Graph) -> Tensor:
        """Sample a graph whose node `SAVED` writes latents."""
        shown = self.server.run(graph)[SAVED]["latents"][0]
        file = self.folder / "output" / shown["subfolder"] / shown["filename"]
        return safetensors.torch.load_file(file)["latent_tensor"]


def _float8(value: Tensor) -> Tensor:
    return value.to(torch.float8_e4m3fn).float()


def graph(*between: tuple[str, dict[str, Any]], model: str = "tiny", dtype: str = "default", seed: int = 3) -> Graph:
    """A graph that samples a model after some nodes."""
    made: Graph = {
        MODEL: {"class_type": "UNETLoader", "inputs": {"unet_name": f"{model}.safetensors", "weight_dtype": dtype}},
        "2": {"class_type": "TinyText", "inputs": {"text": "a red circle moves left"}},
        "3": {"class_type": "TinyText", "inputs": {"text": "blurred"}},
        "4": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 32, "height": 32, "length": 5, "batch_size": 1},
        },
    }
    last = [MODEL, 0]
    for number, (kind, inputs) in enumerate(between):
        made[f"1{number}"] = {"class_type": kind, "inputs": {"model": last, **inputs}}
        last = [f"1{number}", 0]
    sampling = {"seed": seed, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": last, "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    made["6"] = {"class_type": "KSampler", "inputs": {**sampling, **links}}
    made[VERIFY] = {"class_type": "UnlearningVerify", "inputs": {"model": last}}
    made[SAVED] = {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0], "filename_prefix": "latents"}}
    return made


def load(name: str, strength: float = 1.3, denoiser: str = "auto") -> tuple[str, dict[str, Any]]:
    return "UnlearningLoad", {"adapter": f"{name}.safetensors", "strength": strength, "denoiser": denoiser}


def lora(name: str) -> tuple[str, dict[str, Any]]:
    return "LoraLoaderModelOnly", {"lora_name": f"{name}.safetensors", "strength_model": 1.0}


def graph_of(family: str, *between: tuple[str, dict[str, Any]], edited: bool = False) -> Graph:
    """The same for a model of another family, or for one whose weights hold the edit."""
    width, kind, side = OTHERS[family]
    made = graph(*between, model=f"{family} edited" if edited else family)
    for node in ("2", "3"):
        made[node]["inputs"] |= {"width": width, "mask": family == "ltx"}
    made["4"] = {"class_type": kind, "inputs": {"width": side, "height": side, "length": 9, "batch_size": 1}}
    return made


@pytest.fixture(scope="module")
def bench(engine: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(engine("comfyui"), tmp_path_factory.mktemp("server"))
    yield made
    made.server.close()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def test_it_samples_what_a_fused_model_samples_and_leaves_the_base(bench: Bench, record) -> None:
    base = bench.latents(graph())
    edited = bench.latents(graph(load("red")))
    assert distance(edited, base) > 1e-2
    found = distance(edited, bench.latents(graph(model="one")))
    assert found < ROUNDING
    assert torch.equal(bench.latents(graph(seed=3)), base) and torch.equal(bench.latents(graph(load("red"))), edited)
    off = bench.latents(graph(load("red", 0.0)))
    assert torch.equal(off, base)
    record(
        "comfyui", "wan", nodes=f"our nodes in its server: {found:.1e} of a latent; the base comes back, bit for bit"
    )


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_sample_what_a_fused_model_samples(bench: Bench, record, family: str) -> None:
    """Our node, and the LoRA file that is written for ComfyUI in its own node, both through the server."""
    base = bench.latents(graph_of(family))
    exact = bench.latents(graph_of(family, edited=True))
    node = bench.latents(graph_of(family, load(family)))
    file = bench.latents(graph_of(family, lora(family)))
    assert distance(exact, base) > 1e-3
    found, stock = distance(node, exact), distance(file, exact)
    assert max(found, stock) < ROUNDING
    assert torch.equal(bench.latents(graph_of(family)), base)
    shown = bench.server.run(graph_of(family, load(family)))[VERIFY]["text"][0]
    assert "layers (transformer); the weights are those it was built on (deviation 0." in shown
    text = f"in its server: {found:.1e} of a latent; our LoRA file in its own node {stock:.1e}; the base comes back, "
    record("comfyui", family, nodes=f"{text}bit for bit")


def test_an_adapter_of_the_hub_is_loaded_by_its_name(bench: Bench, hub) -> None:
    """Its server fetches the file with the Hub's own client; a commit is kept apart from the branch."""
    first = push_adapter(bench.adapters[0], "org/no-red", token=WRITE).rsplit("/", 1)[1]
    push_adapter(bench.adapters[1], "org/no-red", token=WRITE)

    def of(name: str, strength: float) -> tuple[str, dict[str, Any]]:
        kind, values = load("red", strength)
        return kind, {**values, "adapter": "none", "hub_id": name}

    assert torch.equal(bench.latents(graph(of(f"org/no-red@{first}", 1.3))), bench.latents(graph(load("red"))))
    assert torch.equal(bench.latents(graph(of("org/no-red", 0.8))), bench.latents(graph(load("left", 0.8))))
    assert any("/resolve/" in path for _, path, _, _ in hub.requests)
    with pytest.raises(Failed, match="UnlearningLoad: .*org/none"):
        bench.server.run(graph(of("org/none", 1.0)))


def test_adapters_are_solved_together_in_any_order(bench: Bench) -> None:
    expected = bench.latents(graph(model="stack"))
    one = bench.latents(graph(load("red", 1.3), load("left", 0.8)))
    assert distance(one, expected) < ROUNDING
    assert torch.equal(bench.latents(graph(load("left", 0.8), load("red", 1.3))), one)
    values = {"adapter_1": "left.safetensors", "strength_1": 0.8, "adapter_2": "red.safetensors", "strength_2": 1.3}
    rest = {f"{name}_{number}": value for number in (3, 4) for name, value in (("adapter", "none"), ("strength", 1.0))}
    assert torch.equal(bench.latents(graph(("UnlearningStack", {**values, **rest}))), one)
    assert distance(bench.latents(graph(load("red"))), expected) > 1e-2


def test_what_a_lora_adds_reads_the_edited_input(bench: Bench, record) -> None:
    """In both orders; a LoRA of the adapter beside it, which ComfyUI adds up, lets the concept back in."""
    expected = bench.latents(graph(model="styled"))
    after, before = (
        bench.latents(graph(*nodes)) for nodes in ((load("red"), lora("style")), (lora("style"), load("red")))
    )
    assert torch.equal(after, before)
    found = distance(after, expected)
    assert found < ROUNDING
    added = distance(bench.latents(graph(lora("red"), lora("style"))), expected)
    assert added > 100 * found and added > 1e-3
    assert torch.equal(bench.latents(graph(lora("style"))), bench.latents(graph(lora("style"), load("red", 0.0))))
    record(
        "comfyui",
        "wan",
        beneath_loras=f"nodes {found:.0e}, our LoRA added to another {added:.0e}, from the edit of both",
    )


def test_a_float8_base_is_edited_exactly(bench: Bench, record) -> None:
    base = bench.latents(graph(dtype="fp8_e4m3fn"))
    edited = bench.latents(graph(load("red"), dtype="fp8_e4m3fn"))
    exact = bench.latents(graph(model="float8"))
    rounding = distance(base, bench.latents(graph(model="float8 base")))  # of its arithmetic, without any edit
    found = distance(edited, exact)
    assert found < 1.5 * rounding + ROUNDING and distance(edited, base) > 5 * found
    assert torch.equal(bench.latents(graph(dtype="fp8_e4m3fn")), base)
    record("comfyui", "wan", float8_nodes=f"{found:.0e} from the exact edit; without any edit {rounding:.0e}")


def test_a_gguf_base_is_edited_exactly(bench: Bench, record) -> None:
    def quantised(*between: tuple[str, dict[str, Any]]) -> Graph:
        return {**graph(*between), MODEL: {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": "tiny.gguf"}}}

    base, edited = bench.latents(quantised()), bench.latents(quantised(load("red")))
    exact = bench.latents(graph(model="gguf"))
    rounding = distance(base, bench.latents(graph(model="tiny.gguf")))  # of its arithmetic, without any edit
    found = distance(edited, exact)
    assert found < 1.5 * rounding + ROUNDING and distance(edited, base) > 5 * found
    assert torch.equal(bench.latents(quantised()), base)
    shown = bench.server.run(quantised(load("red"), lora("style")))[VERIFY]["text"][0]
    assert "the weights are those it was built on (deviation 0." in shown and "LoRAs change 2 layers" in shown
    record("comfyui", "wan", gguf_nodes=f"Q8_0: {found:.0e} from the exact edit; without any edit {rounding:.0e}")


def test_auto_finds_the_denoiser_by_its_weights(bench: Bench) -> None:
    """An adapter of two denoisers: each model gets its part, and a wrong choice is told."""
    assert torch.equal(bench.latents(graph(load("both"))), bench.latents(graph(load("both", denoiser="high_noise"))))
    low = bench.latents(graph(load("both"), model="low_noise"))
    assert torch.equal(low, bench.latents(graph(load("both", denoiser="low_noise"), model="low_noise")))
    wrong = bench.server.run(graph(load("both", denoiser="high_noise"), model="low_noise"))[VERIFY]["text"][0]
    assert "NOT THE WEIGHTS IT WAS BUILT ON" in wrong
    with pytest.raises(Failed, match="UnlearningLoad: .*Set the denoiser to 'high_noise' or 'low_noise'"):
        bench.server.run(graph(load("both"), load("both"), model="one"))


@pytest.mark.parametrize(
    ("between", "model", "text"),
    [
        ([load("deep")], "tiny", r"UnlearningLoad: .* is for another model: this one lacks 4 of its 7 layers"),
        ([load("red", denoiser="low_noise")], "tiny", "UnlearningLoad: .*edits no 'low_noise', only transformer"),
        (
            [load("red"), ("TorchCompileModel", {"backend": "inductor"})],
            "tiny",
            "KSampler: The model is compiled, and compiled code would go around the edit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_on_the_node(bench: Bench, between: list[Any], model: str, text: str) -> None:
    with pytest.raises(Failed, match=text):
        bench.server.run(graph(*between, model=model))
    base = bench.latents(graph(seed=11))
    assert torch.equal(bench.latents(graph(seed=11, model="tiny")), base)


def test_verify_names_the_layers(bench: Bench) -> None:
    text = bench.server.run(graph(load("red", 1.0), load("left", 0.5), lora("style")))[VERIFY]["text"][0]
    first, *lines = text.splitlines()
    assert first == "WanModel: 2 adapters, solved jointly"
    assert lines[0].startswith(
        "- red: strength 1, ridge, 7 layers (transformer); the weights are those it was built on"
    )
    assert "LoRAs change 2 layers, 2 of them edited: what they add reads the edited input." in lines
    assert "  blocks.0.cross_attn.k  red 0%, left 50%" in lines
    empty = bench.server.run(graph())[VERIFY]["text"][0]
    assert empty == "WanModel: no unlearning adapter. No layer is edited."


def test_the_example_workflow_runs(bench: Bench) -> None:
    """With small parts in place of the text encoder and the decoder; the strip shows two rows of one seed."""
    made = bench.server.graph_of(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    kinds = {node["class_type"]: node for node in made.values()}
    kinds["UNETLoader"]["inputs"]["unet_name"] = "tiny.safetensors"
    kinds["UnlearningLoad"]["inputs"]["adapter"] = "red.safetensors"
    kinds["EmptyHunyuanLatentVideo"]["inputs"].update(width=32, height=32, length=5)
    kinds["UnlearningCompare"]["inputs"]["steps"] = 2
    for node in made.values():
        if node["class_type"] == "CLIPTextEncode":
            node.update(class_type="TinyText", inputs={"text": node["inputs"]["text"]})
        if node["class_type"] == "VAELoader":
            node.update(class_type="TinyVAE", inputs={})
    made = {name: node for name, node in made.items() if node["class_type"] != "CLIPLoader"}
    shown = bench.server.run(made)
    compare = next(name for name, node in made.items() if node["class_type"] == "UnlearningCompare")
    picture = shown[compare]["images"][0]
    strip = Image.open(bench.folder / "temp" / picture["subfolder"] / picture["filename"])
    assert strip.size == (2 * 40, 2 * 40)  # two frames of 32 pixels and their margins, twice
    top, bottom = (torch.tensor(list(strip.crop((0, y, 80, y + 40)).tobytes())) for y in (0, 40))
    assert not torch.equal(top, bottom)
    verify = next(name for name, node in made.items() if node["class_type"] == "UnlearningVerify")
    assert "7 layers are edited" in shown[verify]["text"][0]
