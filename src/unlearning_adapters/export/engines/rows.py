"""Rows that several engines share: the names of the first releases, and those of diffusers."""

from unlearning_adapters.export.names.families import FAMILIES
from unlearning_adapters.export.names.naming import Rows, same

WAN_NATIVE: Rows = tuple(row for row in FAMILIES["wan"].native.rows if row[0].startswith("blocks."))
WAN_TEXT_NATIVE: Rows = tuple(row for row in WAN_NATIVE if "add_" not in row[0])
WAN_ATTENTION_DIFFUSERS: Rows = same("blocks.N.{attn1,attn2}.{to_q,to_k,to_v,to_out.0}")
WAN_CROSS_ATTENTION_DIFFUSERS: Rows = same("blocks.N.attn2.{to_q,to_k,to_v,to_out.0}")
WAN_IMAGE_DIFFUSERS: Rows = same("blocks.N.attn2.add_{k,v}_proj")
WAN_FEED_FORWARD_DIFFUSERS: Rows = same("blocks.N.ffn.net.{0.proj,2}")
WAN_DIFFUSERS: Rows = (*WAN_ATTENTION_DIFFUSERS, *WAN_IMAGE_DIFFUSERS, *WAN_FEED_FORWARD_DIFFUSERS)
WAN_VACE_DIFFUSERS: Rows = tuple((f"vace_{ours}", f"vace_{theirs}") for ours, theirs in WAN_DIFFUSERS)
WAN_SELF_ATTENTION = "blocks.N.attn1.to_{q,k,v}"

HUNYUAN_NATIVE: Rows = FAMILIES["hunyuan-video"].native.rows
HUNYUAN_15_NATIVE: Rows = FAMILIES["hunyuan-video-1.5"].native.rows
HUNYUAN_15_DIFFUSERS: Rows = same(
    "transformer_blocks.N.attn.{to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_add_out}",
    "transformer_blocks.N.{ff,ff_context}.net.{0.proj,2}",
)
KANDINSKY_NATIVE: Rows = FAMILIES["kandinsky-5"].native.rows
WAN_VACE_NATIVE: Rows = FAMILIES["wan-vace"].native.rows
LTX_NATIVE: Rows = FAMILIES["ltx"].native.rows
LTX_2_NATIVE: Rows = FAMILIES["ltx-2"].native.rows
