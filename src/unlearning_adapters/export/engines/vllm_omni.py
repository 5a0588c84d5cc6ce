"""vLLM-Omni: files that are given at its start, and PEFT folders that are given with a request."""

from collections.abc import Mapping

from .engine import Engine, Reads, Spelling, lacking
from .rows import HUNYUAN_15_DIFFUSERS, LTX_2_NATIVE, WAN_DIFFUSERS, WAN_NATIVE, WAN_SELF_ATTENTION, WAN_VACE_DIFFUSERS

_NO_MODEL = "it has no such model: `vllm_omni/diffusion/registry.py`"
_NO_LOADER = "its pipeline has no loader for the start; take a request: `vllm_omni/diffusion/lora/loader.py`"

_REQUEST = "vllm_omni/diffusion/lora/manager.py::DiffusionLoRAManager._load_adapter"


def _at_start(files: Mapping[str, str]) -> str:
    if len(files) == 1:
        (path,) = files.values()
        return f'Omni(model=..., lora_path="{path}")'
    # By position, the high-noise file first: the names in both files begin with `transformer.`.
    return f'Omni(model=..., lora_path=["{files["high_noise"]}", "{files["low_noise"]}"])'


def _with_a_request(files: Mapping[str, str]) -> str:
    (path,) = files.values()
    return f'OmniDiffusionSamplingParams(lora_request=LoRARequest("unlearn", 1, "{path}"), lora_scale=1.0)'


VLLM_OMNI = Engine(
    "vllm-omni",
    "vLLM-Omni, at its start",
    "0.30.0",
    {
        "wan": Reads(
            ("diffusers", "native-for-diffusers"),
            "vllm_omni/diffusion/lora/loader.py::WanLoraLoaderMixin.load_lora_weights",
            (
                Spelling(
                    (*WAN_DIFFUSERS, *WAN_NATIVE), ("transformer.", "diffusion_model."), whole=(WAN_SELF_ATTENTION,)
                ),
            ),
        )
    },
    _at_start,
    {
        **lacking(_NO_LOADER, "wan-vace", "hunyuan-video-1.5", "ltx-2"),
        **lacking(_NO_MODEL, "hunyuan-video", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    },
    embedders=False,
    experts="a list of two paths, high noise first: they are matched by position",
    undo="restart",
)
VLLM_OMNI_REQUEST = Engine(
    "vllm-omni-request",
    "vLLM-Omni, per request",
    "0.30.0",
    {
        "wan": Reads(
            ("peft-folder",), _REQUEST, (Spelling(WAN_DIFFUSERS, ("base_model.model.",), whole=(WAN_SELF_ATTENTION,)),)
        ),
        "wan-vace": Reads(
            ("peft-folder",),
            _REQUEST,
            (
                Spelling(
                    (*WAN_DIFFUSERS, *WAN_VACE_DIFFUSERS),
                    ("base_model.model.",),
                    whole=(WAN_SELF_ATTENTION, f"vace_{WAN_SELF_ATTENTION}"),
                ),
            ),
        ),
        "hunyuan-video-1.5": Reads(
            ("peft-folder",), _REQUEST, (Spelling(HUNYUAN_15_DIFFUSERS, ("base_model.model.",)),)
        ),
        "ltx-2": Reads(("peft-folder",), _REQUEST, (Spelling(LTX_2_NATIVE, ("base_model.model.",)),)),
    },
    _with_a_request,
    lacking(_NO_MODEL, "hunyuan-video", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    not_run="its request path needs a GPU",
    strict="tensors",
    embedders=False,
    alpha="lora_alpha / r of adapter_config.json",
)
