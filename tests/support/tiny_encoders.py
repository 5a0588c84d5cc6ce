"""Tiny encoders of texts and pictures, with tokenizers of one token per word.

The texts are 64 wide, more than the words of all prompts of a test, so that one word can be moved and all others kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from tiny import WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig, T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from unlearning_adapters.adapter.record import COMPONENTS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, START, END = range(3)
VOCABULARY = 128  # of all encoders: more than the words
WIDTH = 64
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|> {% endfor %}"
)


def word_tokenizer(
    template: str = "", crop: int = 0, extra: Sequence[str] = (), end: bool = False, **options: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `WORDS`, and one for all others.

    Args:
        template: What a pipeline writes in front of the user's words.
        crop: How many tokens it cuts off afterwards; the template gets that many by tokens in front of it.
        extra: Further special tokens.
        end: Whether a text ends with `</s>`, as for CLIP.
        options: For the constructor.
    """
    names = [*SPECIAL, *extra, *dict.fromkeys(WORDS)]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([*SPECIAL, *extra])
    front = max(1, crop - len(core.encode(template).tokens)) if crop else 1
    single = "<s>:0 " * front + "$A:0" + (" </s>:0" if end else "")
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", START), ("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(extra), **options,
    )  # fmt: skip


def t5_encoder(tokenizer: Any) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_ff=37, d_kv=8, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, dropout_rate=0.0,
    )  # fmt: skip
    return T5EncoderModel(config)


def clip_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(end=True, model_max_length=77)


def clip_encoder(width: int, projection: int | None = None) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder for which a word is nearly the same wherever it stands."""
    config = CLIPTextConfig(
        bos_token_id=START, eos_token_id=VOCABULARY - 1, pad_token_id=PAD, vocab_size=VOCABULARY, hidden_size=width,
        intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, projection_dim=projection or width,
        initializer_factor=10.0,
    )  # fmt: skip
    config.eos_token_id = END
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    with torch.no_grad():
        next(weight for name, weight in encoder.named_parameters() if "position_embedding" in name).mul_(0.01)
    return encoder


def llama_config(width: int = WIDTH) -> LlamaConfig:
    return LlamaConfig(
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD, vocab_size=VOCABULARY, hidden_size=width,
        intermediate_size=37, num_attention_heads=4, num_hidden_layers=3, initializer_range=0.5,
    )  # fmt: skip


def llama_encoder(width: int = WIDTH) -> nn.Module:
    return LlamaModel(llama_config(width))


def llava_encoder(image_token: int, image: int = 32) -> nn.Module:
    """A Llama that reads pictures as 16 tokens."""
    vision = CLIPVisionConfig(
        hidden_size=16, projection_dim=16, num_hidden_layers=2, num_attention_heads=4, image_size=image,
        intermediate_size=37, patch_size=image // 4,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=llama_config(), image_token_index=image_token)
    config.pad_token_id = PAD
    return LlavaForConditionalGeneration(config)


def gemma_encoder() -> nn.Module:
    config = Gemma2Config(
        hidden_size=WIDTH, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
        initializer_range=0.5,
    )  # fmt: skip
    return Gemma2Model(config)


def t5_gemma_encoder(image: int = 16) -> nn.Module:
    """The encoder of Motif, with a SigLIP tower for pictures."""
    text = T5Gemma2TextConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=37, vocab_size=VOCABULARY,
        max_position_embeddings=128, head_dim=16, num_key_value_heads=2, dropout_rate=0.0, initializer_range=0.5,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=37, image_size=image,
        patch_size=4,
    )  # fmt: skip
    return T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=vision))


def qwen_text(width: int) -> dict[str, Any]:
    """Arguments of a tiny Qwen 2.5 of two heads."""
    return {
        "hidden_size": width, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "bos_token_id": START, "eos_token_id": END,
        "pad_token_id": PAD, "initializer_range": 0.5,
        "rope_parameters": {"mrope_section": [width // 16, width // 16, width // 8], "rope_type": "default",
                            "rope_theta": 10000.0},
    }  # fmt: skip


def qwen_encoder(width: int = WIDTH) -> nn.Module:
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**qwen_text(width)))


def qwen_vision_encoder(tokenizer: Any, width: int = WIDTH) -> nn.Module:
    """A Qwen 2.5 VL, of which the pipelines use the text half unless they are given pictures."""
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [0],
    }  # fmt: skip
    names = {"image_token_id": "<|image_pad|>", "vision_start_token_id": "<|vision_start|>"}
    ids = {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}
    config = Qwen2_5_VLConfig(text_config=qwen_text(width), vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def clip_vision(width: int = 16, size: int = 224) -> dict[str, Any]:
    """A CLIP image encoder with its processor."""
    config = CLIPVisionConfig(
        hidden_size=width, projection_dim=width, num_hidden_layers=2, num_attention_heads=4, image_size=size,
        intermediate_size=37, patch_size=8,
    )  # fmt: skip
    return {
        "image_encoder": CLIPVisionModelWithProjection(config),
        "feature_extractor": CLIPImageProcessor(crop_size=size, size=size),
    }


def siglip(width: int, size: int = 32) -> dict[str, Any]:
    """A SigLIP image encoder with its processor."""
    config = SiglipVisionConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=4, image_size=size, patch_size=8,
        intermediate_size=37,
    )  # fmt: skip
    return {
        "image_encoder": SiglipVisionModel(config),
        "feature_extractor": SiglipImageProcessor(size={"height": size, "width": size}),
    }


def made(maker: Callable[[], Any]) -> Callable[[], Any]:
    """Make a pipeline the same way each time, silent, with random numbers where a fresh denoiser has zeros."""

    @wraps(maker)
    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = maker()
            for name, component in pipe.components.items():
                if isinstance(component, torch.nn.Module):
                    component.eval().requires_grad_(False)
                    for path, parameter in component.named_parameters() if name in (*COMPONENTS, "controlnet") else ():
                        # Kandinsky's blocks of text stay off, so that a word stays the same at all times.
                        if not parameter.any() and "text_modulation" not in path:
                            parameter.normal_(std=0.2)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
