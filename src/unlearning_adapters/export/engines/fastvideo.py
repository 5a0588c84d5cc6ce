"""FastVideo."""

from collections.abc import Mapping

from unlearning_adapters.export.names.naming import Rows, same

from .engine import Engine, Reads, Spelling, lacking
from .rows import (
    HUNYUAN_15_NATIVE,
    HUNYUAN_NATIVE,
    KANDINSKY_NATIVE,
    LTX_2_NATIVE,
    WAN_DIFFUSERS,
    WAN_TEXT_NATIVE,
)

_SOURCE = "fastvideo/pipelines/lora_pipeline.py::LoRAPipeline.set_lora_adapter"
_PREFIXES = ("diffusion_model.", "")
# Its feed-forwards have other names, and its map of names turns weights alone.
_KANDINSKY: Rows = tuple(row for row in KANDINSKY_NATIVE if "feed_forward" not in row[0])


def with_own_feed_forward(rows: Rows) -> Rows:
    """Return the rows of HunyuanVideo as sglang and FastVideo read them: their modules have other names there.

    Feed-forwards are known by diffusers' names alone, and `txt_in` has no LoRA.
    """
    others = tuple(row for row in rows if "mlp" not in row[1] and "txt_in" not in row[1])
    return (*others, *same("transformer_blocks.N.{ff,ff_context}.net.{0.proj,2}"))


def _instructions(files: Mapping[str, str]) -> str:
    (path,) = files.values()
    return f'generator.set_lora_adapter(lora_nickname="unlearn", lora_path="{path}")'


FASTVIDEO = Engine(
    "fastvideo",
    "FastVideo",
    "0.2.1",
    {
        "wan": Reads(("sglang", "native"), _SOURCE, (Spelling((*WAN_TEXT_NATIVE, *WAN_DIFFUSERS), _PREFIXES),)),
        "hunyuan-video": Reads(
            ("sglang", "native"), _SOURCE, (Spelling(with_own_feed_forward(HUNYUAN_NATIVE), _PREFIXES),)
        ),
        "hunyuan-video-1.5": Reads(
            ("sglang", "native"), _SOURCE, (Spelling(with_own_feed_forward(HUNYUAN_15_NATIVE), _PREFIXES),)
        ),
        "ltx-2": Reads(("native",), _SOURCE, (Spelling(LTX_2_NATIVE, _PREFIXES),)),
        "kandinsky-5": Reads(("native",), _SOURCE, (Spelling(_KANDINSKY, _PREFIXES),)),
    },
    _instructions,
    lacking("it has no such model: `fastvideo/configs/models/dits`", "wan-vace", "ltx", "mochi", "cogvideox"),
    not_run="its pipelines need a GPU",
    embedders=False,
    alpha="alpha / rank",
)
