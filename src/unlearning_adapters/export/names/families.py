"""The models that engines serve, and the names of their layers in the first releases, which most engines keep.

Read off the modules of ComfyUI (`comfy/ldm/*/model.py`); tests/engines holds them against its models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .naming import Naming, same

_WAN_ATTENTION = "{attn1.to_q,attn1.to_k,attn1.to_v,attn1.to_out.0,attn2.to_q,attn2.to_k,attn2.to_v,attn2.to_out.0}"
_WAN_RELEASED = "{self_attn.q,self_attn.k,self_attn.v,self_attn.o,cross_attn.q,cross_attn.k,cross_attn.v,cross_attn.o}"


@dataclass(frozen=True)
class Family:
    """Models of one architecture.

    Args:
        denoisers: Class names of its denoisers in diffusers.
        native: The names of its first release.
        experts: What users call its denoisers, by component, where it has two.
        embedders: Layers outside the blocks that prepare the prompt, as diffusers names them.
    """

    denoisers: tuple[str, ...]
    native: Naming
    experts: Mapping[str, str] = field(default_factory=dict)
    embedders: tuple[str, ...] = ()


_WAN = (
    (f"blocks.N.{_WAN_ATTENTION}", f"blocks.N.{_WAN_RELEASED}"),
    ("blocks.N.attn2.add_{k,v}_proj", "blocks.N.cross_attn.{k,v}_img"),
    ("blocks.N.ffn.net.{0.proj,2}", "blocks.N.ffn.{0,2}"),
)
EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}

_HUNYUAN_DOUBLE = (
    ("transformer_blocks.N.attn.to_{q,k,v}", "double_blocks.N.img_attn_qkv"),
    ("transformer_blocks.N.attn.add_{q,k,v}_proj", "double_blocks.N.txt_attn_qkv"),
    ("transformer_blocks.N.attn.{to_out.0,to_add_out}", "double_blocks.N.{img,txt}_attn_proj"),
    ("transformer_blocks.N.{ff,ff_context}.net.{0.proj,2}", "double_blocks.N.{img,txt}_mlp.{fc1,fc2}"),
)

FAMILIES: Mapping[str, Family] = {
    "wan": Family(
        ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel"),
        Naming(_WAN),
        EXPERTS,
        ("condition_embedder.text_embedder.linear_1", "condition_embedder.text_embedder.linear_2"),
    ),
    "wan-vace": Family(
        ("WanVACETransformer3DModel",),
        Naming(
            (
                *_WAN,
                (f"vace_blocks.N.{_WAN_ATTENTION}", f"vace_blocks.N.{_WAN_RELEASED}"),
                ("vace_blocks.N.ffn.net.{0.proj,2}", "vace_blocks.N.ffn.{0,2}"),
            )
        ),
    ),
    "hunyuan-video": Family(
        ("HunyuanVideoTransformer3DModel",),
        Naming(
            (
                *_HUNYUAN_DOUBLE,
                (
                    "single_transformer_blocks.N.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}",
                    "single_blocks.N.linear1",
                ),
                ("single_transformer_blocks.N.proj_out", "single_blocks.N.linear2"),
                ("context_embedder.proj_in", "txt_in.input_embedder"),
            )
        ),
        embedders=("context_embedder.proj_in",),
    ),
    "hunyuan-video-1.5": Family(("HunyuanVideo15Transformer3DModel",), Naming(_HUNYUAN_DOUBLE)),
    "ltx": Family(
        ("LTXVideoTransformer3DModel",),
        Naming(
            same(
                "transformer_blocks.N.{attn1,attn2}.{to_q,to_k,to_v,to_out.0}",
                "transformer_blocks.N.ff.net.{0.proj,2}",
            )
        ),
    ),
    "ltx-2": Family(
        ("LTX2VideoTransformer3DModel",),
        Naming(
            same(
                "transformer_blocks.N.{attn1,attn2,audio_attn1,audio_attn2,audio_to_video_attn,video_to_audio_attn}"
                ".{to_q,to_k,to_v,to_out.0}",
                "transformer_blocks.N.{ff,audio_ff}.net.{0.proj,2}",
            )
        ),
    ),
    # The gate of its feed-forward stands in other rows than in diffusers, so that those layers have no name here.
    "mochi": Family(
        ("MochiTransformer3DModel",),
        Naming(
            (
                ("transformer_blocks.N.attn1.to_{q,k,v}", "blocks.N.attn.qkv_x"),
                ("transformer_blocks.N.attn1.add_{q,k,v}_proj", "blocks.N.attn.qkv_y"),
                ("transformer_blocks.N.attn1.{to_out.0,to_add_out}", "blocks.N.attn.proj_{x,y}"),
            )
        ),
    ),
    "kandinsky-5": Family(
        ("Kandinsky5Transformer3DModel",),
        Naming(
            same(
                "visual_transformer_blocks.N.{self_attention,cross_attention}.{to_query,to_key,to_value,out_layer}",
                "visual_transformer_blocks.N.feed_forward.{in_layer,out_layer}",
                "text_transformer_blocks.N.self_attention.{to_query,to_key,to_value,out_layer}",
                "text_transformer_blocks.N.feed_forward.{in_layer,out_layer}",
            )
        ),
    ),
    "cogvideox": Family(
        ("CogVideoXTransformer3DModel",),
        Naming(same("transformer_blocks.N.attn1.{to_q,to_k,to_v,to_out.0}", "transformer_blocks.N.ff.net.{0.proj,2}")),
        embedders=("patch_embed.text_proj",),
    ),
}


def family_of(denoiser: str) -> str | None:
    """Return the family of a class of denoisers, or None if no engine of the table serves it."""
    return next((name for name, family in FAMILIES.items() if denoiser in family.denoisers), None)
