"""VisualGen of TensorRT-LLM."""

from unlearning_adapters.export.names.naming import Rows

from .engine import A_B_DOWN_UP, Engine, Reads, Spelling, lacking
from .rows import (
    HUNYUAN_15_DIFFUSERS,
    LTX_2_NATIVE,
    WAN_ATTENTION_DIFFUSERS,
    WAN_FEED_FORWARD_DIFFUSERS,
    WAN_SELF_ATTENTION,
)

_WAN: Rows = (
    *WAN_ATTENTION_DIFFUSERS,
    *WAN_FEED_FORWARD_DIFFUSERS,
    ("blocks.N.attn2.add_{k,v}_proj", "blocks.N.add_{k,v}_proj"),
)
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "dit.", "")
# Self-attention is one layer there, of which the file must hold q, k and v.
_SELF = ("attn1", "audio_attn1")
_SOURCE = "tensorrt_llm/_torch/visual_gen/runtime_lora.py::apply_runtime_lora"


TENSORRT_LLM = Engine(
    "tensorrt-llm",
    "TensorRT-LLM VisualGen",
    "16c9ff1",
    {
        "wan": Reads(("tensorrt-llm",), _SOURCE, (Spelling(_WAN, _PREFIXES, whole=(WAN_SELF_ATTENTION,)),)),
        "hunyuan-video-1.5": Reads(
            ("diffusers",),
            _SOURCE,
            (Spelling(HUNYUAN_15_DIFFUSERS, _PREFIXES, whole=("transformer_blocks.N.attn.to_{q,k,v}",)),),
        ),
        "ltx-2": Reads(
            ("diffusers", "native"),
            _SOURCE,
            (
                Spelling(
                    LTX_2_NATIVE, _PREFIXES, whole=tuple(f"transformer_blocks.N.{name}.to_{{q,k,v}}" for name in _SELF)
                ),
            ),
        ),
    },
    lambda files: "\n".join(f'runtime_lora_config: {{path: "{path}"}}' for path in files.values()),
    lacking(
        "it has no such model: `tensorrt_llm/_torch/visual_gen/models`",
        *("wan-vace", "hunyuan-video", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    ),
    not_run="it needs a GPU",
    strict="layers",
    suffixes=A_B_DOWN_UP,
    embedders=False,
    undo="restart",
)
