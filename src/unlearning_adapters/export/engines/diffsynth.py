"""DiffSynth-Studio."""

from collections.abc import Mapping

from .engine import Engine, Reads, Spelling
from .rows import LTX_2_NATIVE, WAN_NATIVE

_SOURCE = "diffsynth/utils/lora/general.py::GeneralLoRALoader.get_name_dict"
_MODELS = {"": "dit", "high_noise": "dit", "low_noise": "dit2"}


def _instructions(files: Mapping[str, str]) -> str:
    return "\n".join(f'pipe.load_lora(pipe.{_MODELS[expert]}, "{path}", alpha=1)' for expert, path in files.items())


DIFFSYNTH = Engine(
    "diffsynth",
    "DiffSynth-Studio",
    "2.1.12",
    {
        "wan": Reads(("native",), _SOURCE, (Spelling(WAN_NATIVE, ("diffusion_model.", "")),), every=True),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),), every=True),
    },
    _instructions,
    experts="load_lora on pipe.dit (high noise) and on pipe.dit2 (low noise)",
    undo="restart",
)
