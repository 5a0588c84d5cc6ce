"""Tiny whole pipelines of Cosmos 1, 2, 2.5 and 3."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    ConfigMixin,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2_5_TransferPipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    CosmosControlNetModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
)
from tiny import TEXT_DIM, tiny_tokenizer
from tiny_parts import made, quiet, wan_parts
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, T5Tokenizer

from whole import Broken, Whole

# A template without the words of the system, among which a prompt would be lost.
CHAT = (
    "{% for message in messages if message['role'] == 'user' %}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{{ message['content'][0]['text'] }}{% endif %}{% endfor %}"
)
COSMOS = {
    "in_channels": 17, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "mlp_ratio": 2, "text_embed_dim": TEXT_DIM, "adaln_lora_dim": 4, "max_size": (4, 32, 32), "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0), "concat_padding_mask": False, "extra_pos_embed_type": "learnable",
}  # fmt: skip
CALL = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
    "negative_prompt": "a house",
}
IMAGE_CALL = {name: value for name, value in CALL.items() if name != "num_frames"}
# Its padding mask needs torchvision.
PADDED = "run without the padding mask, for which diffusers needs torchvision"


class NoGuard(ModelMixin, ConfigMixin):
    """A safety checker that lets all pass; the real one is a model of billions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1), persistent=False)

    def check_text_safety(self, _prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos(maker: Any, scheduler: Any, **changes: Any) -> Any:
    parts = {"transformer": made(CosmosTransformer3DModel, **{**COSMOS, **changes}), "scheduler": scheduler}
    return quiet(maker(**wan_parts(**parts, safety_checker=NoGuard())))


def cosmos_1(maker: Any, in_channels: int) -> Any:
    vae = made(
        AutoencoderKLCosmos, in_channels=3, out_channels=3, latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(8,), resolution=64, num_layers=2, patch_size=4,
        patch_type="haar", scaling_factor=1.0, spatial_compression_ratio=4, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", num_train_timesteps=1000,
        prediction_type="epsilon", rho=7.0, final_sigmas_type="sigma_min",
    )  # fmt: skip
    transformer = made(CosmosTransformer3DModel, **{**COSMOS, "in_channels": in_channels, "out_channels": 4})
    return quiet(maker(**wan_parts(vae=vae, scheduler=scheduler, transformer=transformer, safety_checker=NoGuard())))


def chat_tokenizer() -> T5Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen(words: int) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": words, "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return made(Qwen2_5_VLForConditionalGeneration, config)


def cosmos_25(maker: Any, **parts: Any) -> Any:
    tokenizer = chat_tokenizer()
    changes = parts.pop("changes", {})
    transformer = made(CosmosTransformer3DModel, **{**COSMOS, **changes})
    shared = {"tokenizer": tokenizer, "text_encoder": qwen(len(tokenizer)), "transformer": transformer}
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    return quiet(maker(**wan_parts(**shared, scheduler=scheduler, safety_checker=NoGuard(), **parts)))


PICTURES = {"img_context_dim_in": 32, "img_context_num_tokens": 4, "img_context_dim_out": 32}


def transfer() -> Cosmos2_5_TransferPipeline:
    controlnet = made(
        CosmosControlNetModel, n_controlnet_blocks=2, in_channels=18, latent_channels=18, model_channels=32,
        num_attention_heads=2, attention_head_dim=16, mlp_ratio=2, text_embed_dim=TEXT_DIM, adaln_lora_dim=4,
        patch_size=(1, 2, 2), max_size=(4, 32, 32), rope_scale=(2.0, 1.0, 1.0), extra_pos_embed_type="learnable",
        img_context_dim_in=32, img_context_dim_out=32, use_crossattn_projection=False,
    )  # fmt: skip
    changes = {"controlnet_block_every_n": 1, **PICTURES}
    return cosmos_25(Cosmos2_5_TransferPipeline, changes=changes, controlnet=controlnet)


def controls() -> list[torch.Tensor]:
    maker = torch.Generator().manual_seed(0)
    return [torch.randn(3, 32, 32, generator=maker) for _ in range(5)]


def cosmos_3() -> Cosmos3OmniPipeline:
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|vision_start|>"]})
    transformer = made(
        Cosmos3OmniTransformer, head_dim=12, hidden_act="relu2", hidden_size=24, intermediate_size=24,
        latent_channel=16, latent_patch_size=1, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1,
        patch_latent_dim=16, qk_norm_for_text=False, rms_norm_eps=1e-5, rope_axes_dim=[2, 2, 2],
        vocab_size=len(tokenizer),
    )  # fmt: skip
    vae = wan_parts()["vae"]
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    return quiet(
        Cosmos3OmniPipeline(
            transformer=transformer,
            text_tokenizer=tokenizer,
            vae=vae,
            scheduler=scheduler,
            sound_tokenizer=None,
            safety_checker=None,
            enable_safety_checker=False,
        )  # fmt: skip
    )


KARRAS = {"use_karras_sigmas": True}
CASES = (
    Whole("CosmosTextToWorldPipeline", "Cosmos", lambda: cosmos_1(CosmosTextToWorldPipeline, 4), CALL, remarks=PADDED),
    Whole("CosmosVideoToWorldPipeline", "Cosmos", lambda: cosmos_1(CosmosVideoToWorldPipeline, 5), CALL,
          takes="image", pictures=True, remarks=PADDED),
    Whole("Cosmos2TextToImagePipeline", "Cosmos",
          lambda: cosmos(Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler(**KARRAS), in_channels=16),
          IMAGE_CALL, remarks=PADDED),
    Whole("Cosmos2VideoToWorldPipeline", "Cosmos",
          lambda: cosmos(Cosmos2VideoToWorldPipeline, FlowMatchEulerDiscreteScheduler(**KARRAS)), CALL, takes="image",
          pictures=True, remarks=PADDED),
    Whole("Cosmos2_5_PredictBasePipeline", "Cosmos", lambda: cosmos_25(Cosmos2_5_PredictBasePipeline),
          {**CALL, "num_frames": 5}, remarks=PADDED),
    Broken("Cosmos2_5_TransferPipeline", "Cosmos", transfer,
           {**IMAGE_CALL, "num_frames": 3, "num_frames_per_chunk": 16, "controls": controls()}, NameError,
           "name 'transforms' is not defined",
           "its ControlNet needs torchvision; without it diffusers 0.42.1 raises NameError: name 'transforms' is not "
           "defined"),
    Whole("Cosmos3OmniPipeline", "Cosmos", cosmos_3,
          {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "use_system_prompt": False,
           "add_resolution_template": False, "add_duration_template": False},
          batch_size=1),
)  # fmt: skip
