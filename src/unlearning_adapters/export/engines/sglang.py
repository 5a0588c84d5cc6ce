"""sglang's diffusion server."""

from collections.abc import Mapping

from unlearning_adapters.export.names.naming import same

from .engine import Engine, Reads, Spelling, lacking
from .fastvideo import with_own_feed_forward
from .rows import HUNYUAN_NATIVE, LTX_2_NATIVE, WAN_DIFFUSERS, WAN_TEXT_NATIVE

_SOURCE = "multimodal_gen/runtime/pipelines_core/lora/pipeline.py::LoRAPipeline.load_lora_adapter"
_FUSED = (
    "transformer_blocks.N.attn.to_{q,k,v}",
    "transformer_blocks.N.attn.add_{q,k,v}_proj",
    "single_transformer_blocks.N.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}",
)
_HUNYUAN_DIFFUSERS = same(
    *_FUSED, *(ours for ours, _ in HUNYUAN_NATIVE if ours not in _FUSED and "embedder" not in ours)
)
_TARGETS = {"": "all", "high_noise": "transformer", "low_noise": "transformer_2"}


def _instructions(files: Mapping[str, str]) -> str:
    lines = []
    for expert, path in files.items():
        name = f"unlearn-{expert}" if expert else "unlearn"
        lines.append(
            f'POST /set_lora {{"lora_nickname": "{name}", "lora_path": "{path}", "target": "{_TARGETS[expert]}", '
            '"strength": 1.0}'
        )
    return "\n".join(lines)


SGLANG = Engine(
    "sglang",
    "sglang",
    "0.5.23",
    {
        "wan": Reads(
            ("sglang", "native"), _SOURCE, (Spelling((*WAN_TEXT_NATIVE, *WAN_DIFFUSERS), ("diffusion_model.", "")),)
        ),
        # Bare `double_blocks.` is taken for FLUX and renamed.
        "hunyuan-video": Reads(
            ("sglang", "native"),
            _SOURCE,
            (
                Spelling(with_own_feed_forward(HUNYUAN_NATIVE)),
                Spelling(_HUNYUAN_DIFFUSERS, ("diffusion_model.", ""), _FUSED),
            ),
        ),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, ("diffusion_model.", "")),)),
    },
    _instructions,
    lacking(
        "it has no such model: `multimodal_gen/configs/models/dits`",
        *("wan-vace", "hunyuan-video-1.5", "ltx", "mochi", "kandinsky-5", "cogvideox"),
    ),
    not_run="its pipelines need a GPU",
    embedders=False,
    experts="two calls of set_lora, target transformer (high noise) and transformer_2 (low noise)",
    alpha="int(alpha) / rank, so that 0.5 is 0",
)
