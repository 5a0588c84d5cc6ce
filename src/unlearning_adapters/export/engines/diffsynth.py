"""DiffSynth-Studio."""

from collections.abc import Mapping

from .engine import Engine, Reads, Spelling, lacking
from .rows import LTX_2_NATIVE, WAN_NATIVE, WAN_VACE_NATIVE

_SOURCE = "diffsynth/utils/lora/general.py::GeneralLoRALoader.get_name_dict"
_MODELS = {"": "dit", "high_noise": "dit", "low_noise": "dit2"}


def _instructions(files: Mapping[str, str]) -> str:
    return "\n".join(f'pipe.load_lora(pipe.{_MODELS[expert]}, "{path}", alpha=1)' for expert, path in files.items())


def _with_vace(files: Mapping[str, str]) -> str:
    """One file for two modules: each takes the layers that it has."""
    (path,) = files.values()
    return f'pipe.load_lora(pipe.dit, "{path}", alpha=1)\npipe.load_lora(pipe.vace, "{path}", alpha=1)'


DIFFSYNTH = Engine(
    "diffsynth",
    "DiffSynth-Studio",
    "2.1.12",
    {
        "wan": Reads(("native",), _SOURCE, (Spelling(WAN_NATIVE, ("diffusion_model.", "")),), every=True),
        "wan-vace": Reads(
            ("native",),
            _SOURCE,
            (Spelling(WAN_VACE_NATIVE, ("diffusion_model.", "")),),
            every=True,
            instructions=_with_vace,
        ),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),), every=True),
    },
    _instructions,
    lacking(
        "it has no such model: `diffsynth/models`",
        *("hunyuan-video", "hunyuan-video-1.5", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    ),
    not_run="the tests make no tiny model of it",
    experts="load_lora on pipe.dit (high noise) and on pipe.dit2 (low noise)",
    undo="restart",
)
