"""Image-to-video pipelines in which a picture is read cell by cell, so that what a red cell adds is known exactly.

Nothing is trained: attention and feed-forward of the image encoder are silenced, or set to a plain mean, by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    WanImageToVideoPipeline,
)
from PIL import Image
from tiny_denoisers import SVD, TEXT
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair

COLOURS = {
    "grey": (120, 120, 120), "green": (30, 160, 60), "yellow": (220, 210, 40), "white": (240, 240, 240),
    "black": (15, 15, 15), "brown": (120, 80, 40), "blue": (30, 60, 220), "red": (220, 30, 30),
}  # fmt: skip
NEUTRAL = tuple(name for name in COLOURS if name != "red")
WAN_CALL = {**tiny.CALL, "max_sequence_length": 512}  # with image keys Wan takes the last 512 tokens for text
PATCHES = {"wan": (4, 8, 4), "svd": (7, 32, 12), "wan 2.2": (2, 16, 1)}  # cells, pixels of a cell, cells in red
WAN_2_2_CALL = {**tiny.CALL, "height": 32, "width": 32}
SVD_CALL = {"height": 64, "width": 64, "num_frames": 2, "num_inference_steps": 2}


def picture(seed: int, cells: int, cell: int, colour: str | None = None, count: int = 1) -> Image.Image:
    """A square of cells in neutral colours; with `colour`, some cells, always the same ones, have this colour."""
    maker = np.random.default_rng(seed)
    names = maker.choice(NEUTRAL[:-1], (cells, cells))  # blue is what stands in the place of red
    places = maker.permutation(cells * cells)[:count]
    if colour:
        names.reshape(-1)[places] = colour
    pixels = np.array([[COLOURS[name] for name in row] for row in names], dtype=np.uint8)
    return Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))


def image_encoder(size: int, patch: int, layers: int) -> CLIPVisionModelWithProjection:
    """A CLIP in which no patch hears of another: one token per patch, and one more for the picture."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2, image_size=size,
        patch_size=patch, projection_dim=TEXT,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        encoder.vision_model.embeddings.patch_embedding.weight.normal_(std=1 / patch)
        encoder.vision_model.embeddings.position_embedding.weight.zero_()
        for layer in encoder.vision_model.encoder.layers:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
    return encoder


def wan_pipeline(latents: bool = False) -> WanImageToVideoPipeline:
    """Wan 2.1 image-to-video: the picture's tokens in the cross-attention are its only way in, or `latents` too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny.tiny_tokenizer()
        pipe = WanImageToVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=tiny.tiny_text_encoder(len(tokenizer)),
            vae=tiny.tiny_wan_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=tiny.tiny_wan_transformer(in_channels=36, image_dim=16, added_kv_proj_dim=48),
            image_encoder=image_encoder(32, 8, layers=2),
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=0
            ),
        )
    open_latents(pipe) if latents else close_latents(pipe.transformer.patch_embedding, 16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def svd_pipeline() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion, with the picture's one embedding as its only way in: the mean of what its cells are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(**SVD).eval().requires_grad_(False)
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 32, 32), down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=4,
            layers_per_block=1,
        ).eval()  # fmt: skip
        encoder = image_encoder(224, 32, layers=2)
        first, second = encoder.vision_model.encoder.layers
        for linear in (first.mlp.fc1, first.mlp.fc2):  # else all colours are sums of three
            nn.init.normal_(linear.weight)
    with torch.no_grad():  # attention with equal weights that passes on what it reads: a mean over the cells
        for name, weight in (("q_proj", 0.0), ("k_proj", 0.0), ("v_proj", 1.0), ("out_proj", 4.0)):
            getattr(second.self_attn, name).weight.copy_(weight * torch.eye(16))
            getattr(second.self_attn, name).bias.zero_()
    encoder.vision_model.post_layernorm = nn.Identity()  # which would divide by the picture's own size
    close_latents(unet.conv_in, 4)
    pipe = StableVideoDiffusionPipeline(
        vae, encoder, unet, EulerDiscreteScheduler(), CLIPImageProcessor(crop_size={"height": 224, "width": 224})
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def close_latents(convolution: nn.Conv2d | nn.Conv3d, noise_channels: int) -> None:
    """Make a denoiser blind for the latents of the picture, which are joined to those of the noise."""
    convolution.weight[:, noise_channels:] = 0


@torch.no_grad()
def cell_token(pipe: WanImageToVideoPipeline, colour: str) -> Tensor:
    """What the image sites of Wan read for a cell of one colour, from the weights."""
    whole = Image.new("RGB", (32, 32), COLOURS[colour])
    pixels = pipe.image_processor(images=whole, return_tensors="pt").pixel_values
    vision = pipe.image_encoder.vision_model
    token = vision.pre_layrnorm(vision.embeddings(pixels))[:, 1:2]
    return pipe.transformer.condition_embedder.image_embedder(token)[0, 0]


@torch.no_grad()
def cell_shift(pipe: StableVideoDiffusionPipeline, colour: str, other: str) -> Tensor:
    """What one more cell of a colour, in place of another, adds to the embedding of Stable Video Diffusion."""
    vision = pipe.image_encoder.vision_model
    first, second = vision.encoder.layers
    tokens = []
    for name in (colour, other):
        whole = np.full((1, 224, 224, 3), COLOURS[name], dtype=np.float32) / 255
        pixels = pipe.feature_extractor(
            images=torch.from_numpy(whole).permute(0, 3, 1, 2), do_normalize=True, do_center_crop=False,
            do_resize=False, do_rescale=False, return_tensors="pt",
        ).pixel_values  # fmt: skip
        token = vision.pre_layrnorm(vision.embeddings(pixels))
        token = token + first.mlp(first.layer_norm2(token))
        tokens.append(second.layer_norm1(token)[0, 1])
    return pipe.image_encoder.visual_projection(tokens[0] - tokens[1])


def video(pipe: Any, shown: Image.Image, seed: int = 7, **changes: int) -> Tensor:
    """The latents of a video of a picture, always from the same noise."""
    if isinstance(pipe, StableVideoDiffusionPipeline):
        call = {**SVD_CALL, "max_guidance_scale": 1.0, "noise_aug_strength": 0.0}
    else:
        call = {**(WAN_CALL if pipe.image_encoder else WAN_2_2_CALL), "prompt": "a dog runs", "guidance_scale": 1.0}
    call = {**call, **changes, "generator": torch.Generator().manual_seed(seed)}
    return pipe(image=shown, output_type="latent", **call).frames


class CellEncoder(nn.Module):
    """In place of a video encoder: the latents of a cell are a random function of its colour, and of nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32))
        nn.init.normal_(self.mix[0].weight, std=2.0)

    def forward(self, x: Tensor, feat_cache: Any = None, feat_idx: Any = None) -> Tensor:
        cells = nn.functional.avg_pool3d(x[:, :, :1], (1, 8, 8)).movedim(1, -1)
        return self.mix(cells).movedim(-1, 1)


def wan_2_2_pipeline() -> WanImageToVideoPipeline:
    """Wan 2.2 image-to-video, which a picture enters among the latents alone; a token sees a quarter of the picture."""
    pipe = tiny.tiny_wan_image_pipeline()
    open_latents(pipe)
    return pipe


def open_latents(pipe: WanImageToVideoPipeline) -> None:
    """Let the latents of the picture say what its cells are, and weigh more than the noise."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        pipe.vae.encoder = CellEncoder()
        pipe.vae.quant_conv.weight.copy_(torch.eye(32)[:, :, None, None, None])
        pipe.transformer.patch_embedding.weight[:, 20:] *= 5


def shown(kind: str, seed: int, colour: str | None = None) -> Image.Image:
    cells, cell, count = PATCHES[kind]
    return picture(seed, cells, cell, colour, count)


def concept(kind: str, pairs: int = 4, neutral: int = 8) -> Concept:
    """Pairs of pictures without a word; the red cells of the one are blue in the other."""
    return Concept(
        "red",
        tuple(
            Pair(unsafe_image=shown(kind, seed, "red"), safe_image=shown(kind, seed, "blue")) for seed in range(pairs)
        ),
        neutral_images=tuple(shown(kind, 100 + seed) for seed in range(neutral)),
    )
