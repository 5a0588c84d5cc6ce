"""Fused weights that other code has changed: detect the change, and take the edit out."""

from typing import Any

import torch

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.weights import is_plain, kept_weight
from unlearning_adapters.runtime.joint.joint_edit import BLOCK_ELEMENTS

from .fuse import check_fused
from .weight_record import WeightRecord


def is_intact(linear: Any, record: WeightRecord, path: str) -> bool:
    """Whether a weight is what fusing made of it; raise `FuseError` if it is another kind of weight by now."""
    try:
        check_fused(linear, record, path)
    except FuseError:
        weight = kept_weight(linear)
        if weight is None or weight.is_meta or not is_plain(weight) or tuple(weight.shape) != record.shape:
            raise
        return False
    return True


def take_out(weight: torch.Tensor, record: WeightRecord) -> None:
    """Take a fused edit out of a weight that changed since, `W' + (W mix) read`; exact but for rounding.

    What was added to the weight (a fused LoRA) stays in it.
    """
    left, right = (part.to(weight.device) for part in (record.left, record.right))
    rows = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        for block, factor in zip(weight.split(rows), left.split(rows), strict=True):
            block.copy_(torch.addmm(block.to(right.dtype), factor, right))
