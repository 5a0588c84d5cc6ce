"""A text encoder of UMT5's widths with random weights, and a tokenizer whose pieces are as long as real ones."""

from collections.abc import Iterable

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from unlearning_adapters.concepts.concept import shared_neutral

VOCABULARY = 2000  # pieces that are learnt from the prompts: most words are one, and long ones two or three
PATTERN = 2**20 + 7  # random numbers that are repeated; no width is a multiple of it


def umt5(layers: int, width: int = 4096, feed_forward: int = 10240, vocabulary: int = 256_384) -> UMT5EncoderModel:
    """Return the encoder of UMT5-XXL with 24 layers, or one like it, in bfloat16."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=64,
        d_ff=feed_forward,
        num_heads=width // 64,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with init_empty_weights(include_buffers=False):
        encoder = UMT5EncoderModel(config)
    return filled(encoder, torch.bfloat16)


def filled(network: nn.Module, dtype: torch.dtype, keep: Iterable[str] = ()) -> nn.Module:
    """Give a network on the meta device random weights: one pattern again and again, for billions take minutes.

    Args:
        network: The network; tensors of it that are tied stay so.
        dtype: Of its weights.
        keep: Parts of names of weights that stay in float32.
    """
    pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))
    made: dict[int, nn.Parameter] = {}
    for module_name, module in network.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in made:
                own = torch.float32 if set(f"{module_name}.{name}".split(".")) & set(keep) else dtype
                made[id(weight)] = nn.Parameter(_random(weight, pattern, own), requires_grad=False)
            setattr(module, name, made[id(weight)])
    return network.eval()


def _random(weight: Tensor, pattern: Tensor, dtype: torch.dtype) -> Tensor:
    values = torch.empty(weight.shape, dtype=dtype)
    flat = values.view(-1)
    if weight.ndim < 2:  # norms and biases
        return values.fill_(1.0)
    scaled = (pattern * weight.shape[1] ** -0.5).to(dtype)
    for start in range(0, len(flat), PATTERN):
        part = flat[start : start + PATTERN]
        part.copy_(scaled[: len(part)])
    return values


def tokenizer(prompts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer that learnt its pieces from the shipped neutral prompts and some others."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    core.train_from_iterator([*shared_neutral(), *prompts], trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
