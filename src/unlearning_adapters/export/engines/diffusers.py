"""diffusers itself, and xDiT, which runs a pipeline of diffusers."""

from collections.abc import Mapping
from pathlib import PurePath

from unlearning_adapters.export.names.families import FAMILIES, Family
from unlearning_adapters.export.names.naming import same

from .engine import Engine, Reads, Spelling, lacking
from .rows import HUNYUAN_NATIVE, LTX_2_NATIVE, LTX_NATIVE, WAN_NATIVE

_SOURCE = "diffusers/loaders/lora_pipeline.py"
_BOTH = ("diffusers", "native-for-diffusers")


def _own(family: Family) -> Spelling:
    paths = dict.fromkeys(ours for ours, _ in family.native.rows)
    return Spelling(same(*paths, *family.embedders), ("transformer.",))


def _instructions(files: Mapping[str, str]) -> str:
    second = {"low_noise": ", load_into_transformer_2=True"}
    return "\n".join(f'pipe.load_lora_weights("{path}"{second.get(expert, "")})' for expert, path in files.items())


def _reads(name: str, loader: str, *released: Spelling) -> Reads:
    layouts = _BOTH if released else ("diffusers",)
    return Reads(layouts, f"{_SOURCE}::{loader}", (_own(FAMILIES[name]), *released), every=True)


_DIFFUSERS = {
    "wan": _reads("wan", "WanLoraLoaderMixin", Spelling(WAN_NATIVE, whole=("blocks.N.attn2.add_{k,v}_proj",))),
    "wan-vace": _reads("wan-vace", "WanLoraLoaderMixin"),
    "hunyuan-video": _reads(
        "hunyuan-video", "HunyuanVideoLoraLoaderMixin", Spelling(HUNYUAN_NATIVE, needs="img_attn_qkv")
    ),
    "ltx": _reads("ltx", "LTXVideoLoraLoaderMixin", Spelling(LTX_NATIVE)),
    "ltx-2": _reads("ltx-2", "LTX2LoraLoaderMixin", Spelling(LTX_2_NATIVE)),
    "mochi": _reads("mochi", "Mochi1LoraLoaderMixin"),
    "kandinsky-5": _reads("kandinsky-5", "KandinskyLoraLoaderMixin"),
    "cogvideox": _reads("cogvideox", "CogVideoXLoraLoaderMixin"),
}


def _into_the_denoiser(files: Mapping[str, str]) -> str:
    (path,) = (PurePath(path) for path in files.values())
    return f'pipe.transformer.load_lora_adapter("{path.parent}", weight_name="{path.name}", prefix="transformer")'


# Its pipelines have no `load_lora_weights`; the denoiser takes LoRA files itself.
_HUNYUAN_15 = Reads(
    ("diffusers",),
    "diffusers/loaders/peft.py::PeftAdapterMixin.load_lora_adapter",
    (_own(FAMILIES["hunyuan-video-1.5"]),),
    every=True,
    instructions=_into_the_denoiser,
)

DIFFUSERS = Engine(
    "diffusers",
    "diffusers",
    "0.42.1",
    {**_DIFFUSERS, "hunyuan-video-1.5": _HUNYUAN_15},
    _instructions,
    {},
    not_run="the tests make no tiny pipeline of it",
    experts="load_into_transformer_2=True for the second file",
)
XDIT = Engine(
    "xdit",
    "xDiT (xfuser)",
    "0.7.0",
    {
        **{name: _DIFFUSERS[name] for name in ("wan", "wan-vace", "hunyuan-video", "ltx-2", "cogvideox")},
        "hunyuan-video-1.5": _HUNYUAN_15,
    },
    lambda files: (
        "xDiT has no option for LoRA files; load them into the pipeline before it is split:\n" + _instructions(files)
    ),
    lacking("it has no such model: `xfuser/model_executor/models/transformers`", "ltx", "mochi", "kandinsky-5"),
    not_run="it needs a GPU; diffusers loads the file before, as above",
    experts="load_into_transformer_2=True for the second file",
)
