"""The names of the first releases with q, k and v apart, as LightX2V keeps those of HunyuanVideo 1.5."""

from unlearning_adapters.export.names.naming import Naming, Part

from .layout import Layout
from .native import PREFIX, native_name

_HUNYUAN = Naming(
    (
        ("transformer_blocks.N.attn.to_{q,k,v}", "double_blocks.N.img_attn_{q,k,v}"),
        ("transformer_blocks.N.attn.add_{q,k,v}_proj", "double_blocks.N.txt_attn_{q,k,v}"),
    )
)


def _name(denoiser: str, path: str) -> Part | None:
    part = _HUNYUAN.part(path) if denoiser.startswith("HunyuanVideo") else None
    return native_name(denoiser, path) if part is None else Part(PREFIX + part.layer)


SPLIT = Layout("split", "as native, with q, k and v of HunyuanVideo apart", _name)
