"""Tiny random CLIP and vision-language models with their processors, and a known direction planted in each."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH, WIDTH = 16, 8, 16
RED, BLUE = (np.full((4, SIDE, SIDE, 3), colour, dtype=np.uint8) for colour in ((220, 30, 30), (30, 30, 220)))
WORDS = ("yes", "no", "does", "any", "of", "them", "show", "a", "red", "blue", "circle", "answer", "?", ".", ",")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)
VISION = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.5}  # fmt: skip


def pictures(clip: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in clip]


def image_processor() -> CLIPImageProcessor:
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)


def tiny_clip(positive: str = "red", negative: str = "blue") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP model for which red frames are like one text and blue frames like another."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: index for index, token in enumerate(vocabulary)}, [])
    processor = CLIPProcessor(image_processor(), tokenizer)
    torch.manual_seed(0)
    text = {"vocab_size": len(vocabulary), "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": len(vocabulary) - 1, "initializer_range": 0.5}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)).eval()
    with torch.no_grad():
        seen = processor(images=pictures(np.concatenate([RED[:1], BLUE[:1]])), return_tensors="pt")
        red, blue = model.visual_projection(model.vision_model(**seen).pooler_output)
        direction = red / red.norm() - blue / blue.norm()
        told = processor(text=[positive, negative], return_tensors="pt", padding=True)
        pooled = model.text_model(**told).pooler_output
        model.text_projection.weight.copy_(
            torch.outer(direction, torch.linalg.pinv(pooled) @ torch.tensor([1.0, -1.0]))
        )
    return model, processor


def tiny_vlm() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A vision-language model that has not learned to answer anything."""
    vocabulary = ["<unk>", "<pad>", "</s>", "<image>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor(), tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=3, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), processor


def plant_answer(model: Any, processor: Any, question: str) -> None:
    """Make the model say "yes" to red frames and "no" to blue ones, for one question.

    After RMSNorm all hidden states have one norm, so that their difference separates them at zero.
    """
    states = []
    for clip in (RED, BLUE):
        content = [
            *({"type": "image", "image": picture} for picture in pictures(clip)),
            {"type": "text", "text": question},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            states.append(model.model(**inputs).last_hidden_state[0, -1])
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[yes] = 10 * (states[0] - states[1])
        model.lm_head.weight[no] = 10 * (states[1] - states[0])
