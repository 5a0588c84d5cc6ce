"""The names of diffusers after `transformer.`, but for the image keys of Wan, which TensorRT-LLM keeps in the block."""

import re

from unlearning_adapters.export.names.naming import Part

from .layout import Layout

_IMAGE_KEY = re.compile(r"(blocks\.\d+)\.attn2\.(add_[kv]_proj)")


def _name(_denoiser: str, path: str) -> Part:
    return Part("transformer." + _IMAGE_KEY.sub(r"\1.\2", path))


TENSORRT_LLM = Layout("tensorrt-llm", "as diffusers, with the image keys of Wan in the block itself", _name)
