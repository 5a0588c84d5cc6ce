"""The names of the first releases, and diffusers' where sglang and FastVideo know those alone.

These are the image keys of Wan, and the feed-forwards of HunyuanVideo.
"""

import re

from unlearning_adapters.export.names.naming import Part

from .layout import Layout
from .native import PREFIX, native_name

_DIFFUSERS = re.compile(
    r"blocks\.\d+\.attn2\.add_[kv]_proj|transformer_blocks\.\d+\.(?:ff|ff_context)\.net\.(?:0\.proj|2)"
)


def _name(denoiser: str, path: str) -> Part | None:
    return Part(PREFIX + path) if _DIFFUSERS.fullmatch(path) else native_name(denoiser, path)


SGLANG = Layout(
    "sglang", "as native, with diffusers' names for the image keys of Wan and the feed-forwards of HunyuanVideo", _name
)
