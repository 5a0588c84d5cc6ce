"""The names of the first releases, but diffusers' for the image keys of Wan, as sglang and FastVideo know them."""

import re

from unlearning_adapters.export.layout import Layout
from unlearning_adapters.export.naming import Part

from .native import PREFIX, native_name

_IMAGE_KEY = re.compile(r"blocks\.\d+\.attn2\.add_[kv]_proj")


def _name(denoiser: str, path: str) -> Part | None:
    return Part(PREFIX + path) if _IMAGE_KEY.fullmatch(path) else native_name(denoiser, path)


SGLANG = Layout("sglang", "as native, with diffusers' names for the image keys of Wan", _name)
