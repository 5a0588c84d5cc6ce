"""Where an adapter edits: the text layers of every denoiser, found by structure, and the errors of a selection."""

import re
from types import SimpleNamespace

import diffusers
import pytest
import tiny
import torch
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
from peft import LoraConfig
from torch import nn

from unlearning_adapters.errors import DenoiserError, SiteError
from unlearning_adapters.pipelines.sites import Site, base_linear, denoisers, find_sites, linear_layers, site_module

ATTN2 = "transformer_blocks.N.attn2.{to_k,to_v}"
UNET = " ".join(
    f"{part}.transformer_blocks.N.attn2.{{to_k,to_v}}"
    for part in ("down_blocks.N.attentions.N", "up_blocks.N.attentions.N", "mid_block.attentions.N")
)
EASY_ANIMATE = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_embed_dim": 16, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 2, "patch_size": 2, "num_layers": 3,
}  # fmt: skip
LATTE = {
    "sample_size": 8, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
    "caption_channels": 32, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8,
    "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False,
}  # fmt: skip

# Every video denoiser of diffusers 0.42: class, arguments, paths of the text sites with N for every index.
TEXT_SITES = [
    ("AllegroTransformer3DModel", {"num_layers": 2}, ATTN2),
    ("UNetMotionModel", {}, UNET),
    ("UNet2DConditionModel", {}, UNET),
    ("UNet3DConditionModel", {}, UNET),
    ("I2VGenXLUNet", {}, UNET),
    ("AnyFlowTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("AnyFlowFARTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("ChronoEditTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("ChronoEditTransformer3DModel", {"num_layers": 2, "added_kv_proj_dim": 5120}, "blocks.N.attn2.{to_k,to_v}"),
    ("CogVideoXTransformer3DModel", {"num_layers": 2}, "patch_embed.text_proj"),
    ("ConsisIDTransformer3DModel", {"num_layers": 2}, "patch_embed.text_proj"),
    ("CosmosTransformer3DModel", {"num_layers": 2, "concat_padding_mask": False}, ATTN2),
    ("Cosmos3OmniTransformer", {"num_hidden_layers": 2}, "layers.N.self_attn.{to_q,to_k,to_v}"),
    ("EasyAnimateTransformer3DModel", EASY_ANIMATE, "transformer_blocks.N.attn1.{add_q_proj,add_k_proj,add_v_proj}"),
    (
        "EasyAnimateTransformer3DModel",
        {**EASY_ANIMATE, "mmdit_layers": 2, "text_embed_dim_t5": 16, "add_norm_text_encoder": True},
        "text_proj.N text_proj_t5.N transformer_blocks.N.attn1.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    ("HeliosTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    (
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 2, "num_single_layers": 2},
        "context_embedder.proj_in transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    (
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 2, "num_single_layers": 2, "image_condition_type": "token_replace"},
        "context_embedder.proj_in transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    (
        "HunyuanVideoFramepackTransformer3DModel",
        {"num_layers": 2, "num_single_layers": 2},
        "context_embedder.proj_in transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    (
        "HunyuanVideo15Transformer3DModel",
        {"num_layers": 2},
        "transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    ("Kandinsky5Transformer3DModel", {}, "visual_transformer_blocks.N.cross_attention.{to_key,to_value}"),
    (
        "Kandinsky6Transformer3DModel",
        {"num_visual_blocks": 2},
        "visual_transformer_blocks.N.video_dec_block.cross_attention.{to_key,to_value} "
        "visual_transformer_blocks.N.audio_dec_block.cross_attention.{to_key,to_value}",
    ),
    ("LatteTransformer3DModel", LATTE, ATTN2),
    ("LTXVideoTransformer3DModel", {"num_layers": 2}, ATTN2),
    ("LTX2VideoTransformer3DModel", {"num_layers": 2}, f"{ATTN2} {ATTN2.replace('attn2', 'audio_attn2')}"),
    ("MiniMaxH3Transformer3DModel", {"num_layers": 2}, "context_embedder"),
    ("MochiTransformer3DModel", {"num_layers": 2}, "transformer_blocks.N.attn1.{add_q_proj,add_k_proj,add_v_proj}"),
    (
        "MotifVideoTransformer3DModel",
        {"num_layers": 2, "num_single_layers": 2},
        "context_embedder.linear_1 transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}",
    ),
    ("SanaVideoTransformer3DModel", {"num_layers": 2}, ATTN2),
    ("SanaWMTransformer3DModel", {"num_layers": 2}, "blocks.N.cross_attn.kv_linear"),
    (SanaWMLTX2RefinerTransformer3DModel, {"num_layers": 2}, ATTN2),
    ("SkyReelsV2Transformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("WanTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("WanTransformer3DModel", {"num_layers": 2, "added_kv_proj_dim": 5120}, "blocks.N.attn2.{to_k,to_v}"),
    ("WanVACETransformer3DModel", {"num_layers": 2, "vace_layers": [0]}, "{vace_,}blocks.N.attn2.{to_k,to_v}"),
    ("WanAnimateTransformer3DModel", {"num_layers": 2}, "blocks.N.attn2.{to_k,to_v}"),
    ("WanAnimate2Transformer3DModel", {"num_layers": 2}, "blocks.N.cross_attn.{to_k,to_v}"),
]


def denoiser(model: str | type, arguments: dict) -> SimpleNamespace:
    """A pipeline with a denoiser of real size that takes no memory."""
    cls = getattr(diffusers, model) if isinstance(model, str) else model
    with torch.device("meta"):
        return SimpleNamespace(components={"transformer": cls(**arguments)})


def expand(paths: str) -> set[str]:
    """Expand `a.{b,c}` to a.b and a.c."""
    found = set(paths.split())
    while any("{" in path for path in found):
        path = next(path for path in found if "{" in path)
        head, choices, tail = re.match(r"(.*?){(.*?)}(.*)", path).groups()
        found = found - {path} | {head + choice + tail for choice in choices.split(",")}
    return found


def shape(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".N", path)


@pytest.mark.parametrize(("model", "arguments", "expected"), TEXT_SITES, ids=lambda value: str(value)[:40])
def test_text_sites_of_every_denoiser(model, arguments, expected):
    sites = find_sites(denoiser(model, arguments))
    assert {shape(site.module) for site in sites} == expand(expected)
    assert {site.kind for site in sites} == {"text"}


@pytest.mark.parametrize(("model", "arguments", "expected"), TEXT_SITES, ids=lambda value: str(value)[:40])
def test_text_sites_in_blocks_are_those_that_every_engine_reaches(model, arguments, expected):
    pipe = denoiser(model, arguments)
    wanted = {path for path in expand(expected) if re.search(r"(blocks|layers)\.N\.", path)}
    if not wanted:
        with pytest.raises(SiteError, match="No text-in-blocks site was found in transformer"):
            find_sites(pipe, "text-in-blocks")
        return
    sites = find_sites(pipe, "text-in-blocks")
    assert {shape(site.module) for site in sites} == wanted
    assert {site.name for site in sites} == {site.name for site in find_sites(pipe) if site.block is not None}


def test_each_block_that_reads_the_prompt_has_its_sites():
    for arguments, count in (({"num_layers": 2}, 4), ({"num_layers": 5}, 10)):
        assert len(find_sites(denoiser("WanTransformer3DModel", arguments))) == count
    wide = find_sites(denoiser("MochiTransformer3DModel", {"num_layers": 3}))
    assert len(wide) == 9  # the last block has no `to_add_out`, but it reads the prompt too


def test_an_image_only_denoiser_has_no_text_site():
    with pytest.raises(SiteError, match=r"No text site was found in transformer \(UNetSpatioTemporalConditionModel\)"):
        find_sites(denoiser("UNetSpatioTemporalConditionModel", {}))


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("WanTransformer3DModel", {"num_layers": 2}, "blocks.N.{attn1.to_out.N,attn2.to_out.N,ffn.net.N.proj}"),
        ("CogVideoXTransformer3DModel", {"num_layers": 2}, "transformer_blocks.N.{attn1.to_out.N,ff.net.N.proj}"),
        (
            "Kandinsky5Transformer3DModel",
            {},
            "visual_transformer_blocks.N.{self_attention.out_layer,cross_attention.out_layer,feed_forward.in_layer}",
        ),
        (
            "HunyuanVideoTransformer3DModel",
            {"num_layers": 2, "num_single_layers": 2},
            "transformer_blocks.N.{attn.to_out.N,ff.net.N.proj} single_transformer_blocks.N.{proj_mlp,proj_out}",
        ),
        (
            "Cosmos3OmniTransformer",
            {"num_hidden_layers": 2},
            "layers.N.{self_attn.to_add_out,mlp_moe_gen.gate_proj,mlp_moe_gen.up_proj}",
        ),
        ("WanAnimate2Transformer3DModel", {"num_layers": 2}, "blocks.N.{self_attn.to_out.N,cross_attn.to_out.N,ffn.N}"),
    ],
)
def test_hidden_sites_are_attention_out_and_feed_forward_in_of_the_video(model, arguments, expected):
    sites = find_sites(denoiser(model, arguments), "hidden")
    assert {shape(site.module) for site in sites} == expand(expected)
    assert {site.kind for site in sites} == {"hidden"}


def test_a_site_knows_its_layer():
    pipe = tiny.tiny_wan_pipeline()
    site = find_sites(pipe)[0]
    assert site == Site("transformer", "blocks.0.attn2.to_k", 48, 48, "text")
    assert site.name == "transformer.blocks.0.attn2.to_k"
    assert site.block == 0
    assert site_module(pipe, site.name) is pipe.transformer.blocks[0].attn2.to_k
    assert Site("transformer", "patch_embed.text_proj", 1, 1, "text").block is None


def test_both_denoisers_of_wan_2_2_have_sites():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    assert list(denoisers(pipe)) == ["transformer", "transformer_2"]
    names = [site.name for site in find_sites(pipe)]
    assert len(names) == 8
    assert [name.replace("transformer_2.", "transformer.") for name in names[4:]] == names[:4]


def test_a_selection_by_patterns_and_blocks():
    pipe = tiny.tiny_wan_pipeline()
    keys = find_sites(pipe, "transformer.blocks.*.attn2.to_k")
    assert [site.module for site in keys] == ["blocks.0.attn2.to_k", "blocks.1.attn2.to_k"]
    assert {site.kind for site in keys} == {"text"}
    both = find_sites(pipe, ["*.ffn.net.2", "*.attn2.to_k"])
    assert [site.kind for site in both] == ["text", "hidden"] * 2  # in the order of the modules
    assert [site.module for site in find_sites(pipe, ["text", "hidden"], blocks=[1])] == [
        "blocks.1.attn1.to_out.0", "blocks.1.attn2.to_k", "blocks.1.attn2.to_v", "blocks.1.attn2.to_out.0",
        "blocks.1.ffn.net.0.proj",
    ]  # fmt: skip
    every = find_sites(pipe, "*")
    assert len(every) == sum(isinstance(module, nn.Linear) for module in pipe.transformer.modules())


def test_a_selection_that_names_nothing_shows_the_nearest_names():
    pipe = tiny.tiny_wan_pipeline()
    with pytest.raises(SiteError, match=r"'transformer\.blocks\.\*\.atn2\.to_k' matches none of the 26 Linear layers"):
        find_sites(pipe, "transformer.blocks.*.atn2.to_k")
    with pytest.raises(SiteError, match=r"Nearest: transformer\.blocks\.\*\.attn2\.to_k,"):
        find_sites(pipe, "transformer.blocks.*.atn2.to_k")
    with pytest.raises(SiteError, match="'zzz' matches none"):
        find_sites(pipe, ["text", "zzz"])
    with pytest.raises(SiteError, match=r"in block 2, 7; the blocks with such sites: from 0 to 1"):
        find_sites(pipe, blocks=[0, 2, 7])
    with pytest.raises(SiteError, match=r"has no Linear layer 'transformer\.blocks\.0\.attn2\.to_x'\. Nearest: .*to_k"):
        site_module(pipe, "transformer.blocks.0.attn2.to_x")
    with pytest.raises(SiteError, match=r"no Linear layer 'transformer\.blocks\.0\.attn2'"):
        site_module(pipe, "transformer.blocks.0.attn2")
    with pytest.raises(SiteError, match=r"component 'unet', but WanPipeline has the denoisers transformer\."):
        site_module(pipe, "unet.blocks.0.attn2.to_k")


def test_a_pipeline_without_a_denoiser_is_refused():
    pipe = SimpleNamespace(components={"vae": nn.Linear(1, 1), "transformer": None})
    with pytest.raises(DenoiserError, match=r"The transformer of SimpleNamespace is None\. Load the pipeline with it"):
        find_sites(pipe)
    with pytest.raises(DenoiserError, match="its components are: none"):
        denoisers(object())


def test_a_lora_layer_counts_as_the_layer_that_it_wraps():
    pipe = tiny.tiny_wan_pipeline()
    before = find_sites(pipe), find_sites(pipe, "*")
    linear = pipe.transformer.blocks[0].attn2.to_k
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_out.0"]))
    assert (find_sites(pipe), find_sites(pipe, "*")) == before
    wrapper = site_module(pipe, "transformer.blocks.0.attn2.to_k")
    assert wrapper is not linear
    assert base_linear(wrapper) is linear
    assert base_linear(linear) is linear


def test_a_compiled_denoiser_has_the_same_sites():
    pipe = tiny.tiny_wan_pipeline()
    before = find_sites(pipe, "*")
    original = pipe.transformer
    pipe.transformer.blocks[1] = torch.compile(pipe.transformer.blocks[1], backend="eager")
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert find_sites(pipe, "*") == before
    assert denoisers(pipe) == {"transformer": original}
    assert site_module(pipe, "transformer.blocks.1.attn2.to_k") is original.blocks[1]._orig_mod.attn2.to_k


def test_fused_projections_are_refused_until_they_are_unfused():
    pipe = tiny.tiny_wan_pipeline()
    before = find_sites(pipe)
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(
        DenoiserError, match=r"transformer\.blocks\.0\.attn2 are fused.*unfuse_qkv_projections\(\) first"
    ):
        find_sites(pipe)
    assert len(find_sites(pipe, "hidden")) == 6  # attention outputs are not fused
    pipe.transformer.unfuse_qkv_projections()
    assert find_sites(pipe) == before


def test_every_linear_layer_is_listed_once_by_the_name_that_modules_have():
    pipe = denoiser("HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 1})
    transformer = pipe.components["transformer"]
    listed = dict(linear_layers(transformer))
    assert listed == {name: m for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
