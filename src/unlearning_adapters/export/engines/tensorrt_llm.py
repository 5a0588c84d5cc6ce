"""VisualGen of TensorRT-LLM."""

from unlearning_adapters.export.names.naming import Rows

from .engine import Engine, Reads, Spelling
from .rows import WAN_ATTENTION_DIFFUSERS, WAN_SELF_ATTENTION

_WAN: Rows = (*WAN_ATTENTION_DIFFUSERS, ("blocks.N.attn2.add_{k,v}_proj", "blocks.N.add_{k,v}_proj"))

TENSORRT_LLM = Engine(
    "tensorrt-llm",
    "TensorRT-LLM VisualGen",
    "PR 17435",
    {
        "wan": Reads(
            ("tensorrt-llm", "diffusers"),
            "tensorrt_llm/_torch/visual_gen/runtime_lora.py::apply_runtime_lora",
            (
                Spelling(
                    _WAN,
                    ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "dit."),
                    whole=(WAN_SELF_ATTENTION,),
                ),
            ),
        )
    },
    lambda files: "\n".join(f"apply_runtime_lora with {path}" for path in files.values()),
    embedders=False,
    undo="restart",
)
