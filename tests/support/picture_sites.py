"""The layers that read a picture alone, by the name of a tiny denoiser; the others have none. A table of the docs."""

IMAGE_KEYS = "blocks.N.attn2.{add_k_proj,add_v_proj}"
SVD_LEVELS = " ".join(
    f"{part}.attentions.N.{blocks}.N.attn2.{{to_k,to_v}}"
    for part in ("down_blocks.N", "up_blocks.N", "mid_block")
    for blocks in ("transformer_blocks", "temporal_transformer_blocks")
)
SITES = {
    "WanTransformer3DModel (image keys)": IMAGE_KEYS,
    "SkyReelsV2Transformer3DModel (image keys)": IMAGE_KEYS,
    "ChronoEditTransformer3DModel (image keys)": IMAGE_KEYS,
    "WanAnimateTransformer3DModel (image keys)": IMAGE_KEYS,
    "WanAnimate2Transformer3DModel (image keys)": "blocks.N.cross_attn.{add_k_proj,add_v_proj}",
    "CosmosTransformer3DModel (image keys)": "transformer_blocks.N.attn2.{k_img,v_img}",
    "HunyuanVideoFramepackTransformer3DModel": "image_projection.up",
    "HunyuanVideo15Transformer3DModel": "image_embedder.linear_1",
    "MotifVideoTransformer3DModel (text cross-attention, pictures)": "image_embedder.linear_1",
    "I2VGenXLUNet": "context_embedding.N",
    "UNetSpatioTemporalConditionModel": SVD_LEVELS,
}
# How the picture enters besides, in the pipelines of that denoiser.
ALSO = {
    "WanAnimateTransformer3DModel (image keys)": "latents; the face of the driving video",
    "CosmosTransformer3DModel (image keys)": "latents; the pipeline of 2.5 Transfer fills these tokens with zeros",
    "I2VGenXLUNet": "latents; tokens of the latents among those of the prompt",
}


def rows() -> str:
    """Return the rows of the table in docs/pipelines.md."""
    paths = {name: "<br>".join(f"`{path}`" for path in sites.split()) for name, sites in SITES.items()}
    return "".join(f"| {name} | {paths[name]} | {ALSO.get(name, 'latents')} |\n" for name in SITES)
