"""FastVideo."""

from collections.abc import Mapping

from unlearning_adapters.export.engine import Engine, Reads, Spelling
from unlearning_adapters.export.naming import Rows

from .rows import (
    HUNYUAN_15_NATIVE,
    HUNYUAN_NATIVE,
    LTX_2_NATIVE,
    WAN_DIFFUSERS,
    WAN_TEXT_NATIVE,
)

_SOURCE = "fastvideo/pipelines/lora_pipeline.py::LoRAPipeline.set_lora_adapter"
_PREFIXES = ("diffusion_model.", "")


def without_feed_forward(rows: Rows) -> Rows:
    """Return the rows of HunyuanVideo but those that sglang and FastVideo name otherwise, or keep LoRAs from."""
    return tuple(row for row in rows if "mlp" not in row[1] and "txt_in" not in row[1])


def _instructions(files: Mapping[str, str]) -> str:
    (path,) = files.values()
    return f'generator.set_lora_adapter(lora_nickname="unlearn", lora_path="{path}")'


FASTVIDEO = Engine(
    "fastvideo",
    "FastVideo",
    "0.2.1",
    {
        "wan": Reads(("sglang", "native"), _SOURCE, (Spelling((*WAN_TEXT_NATIVE, *WAN_DIFFUSERS), _PREFIXES),)),
        "hunyuan-video": Reads(("native",), _SOURCE, (Spelling(without_feed_forward(HUNYUAN_NATIVE), _PREFIXES),)),
        "hunyuan-video-1.5": Reads(
            ("native",), _SOURCE, (Spelling(without_feed_forward(HUNYUAN_15_NATIVE), _PREFIXES),)
        ),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),)),
    },
    _instructions,
    embedders=False,
    alpha="alpha / rank",
)
