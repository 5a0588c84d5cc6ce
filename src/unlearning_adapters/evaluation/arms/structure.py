"""How alike two clips are in structure, frame by frame: SSIM, by torchmetrics."""

import math
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.detectors.sampling import FRAMES, choose_frames

SIGMA = 1.5  # of the Gaussian window in pixels, as in the paper: 11 x 11 pixels
REACH = 3.5  # half of the window in sigmas, as torchmetrics cuts it
BATCH = 2**22  # numbers in one call: five maps of them are made


def frame_similarity(base: Clip, clip: Clip) -> float | None:
    """Return the mean structural similarity of frames, Z. Wang et al. 2004: 1 for equal frames, near 0 for noise.

    `(2 m m' + c1)(2 s + c2) / ((m^2 + m'^2 + c1)(v + v' + c2))` of means, variances and covariance in a Gaussian
    window, with c1 = 0.01^2 and c2 = 0.03^2 for values from 0 to 1; over all channels, and ten frames at most, evenly
    from the first to the last. Where a side has less than 6 pixels the window is smaller.

    Args:
        base: Clip of shape (frames, height, width, 3).
        clip: Clip of the same shape.

    Returns:
        None without torchmetrics, or if frames are too small for any window.
    """
    whole = int(REACH * SIGMA + 0.5)
    half = min(whole, *(side - 1 for side in base.shape[1:3]))  # frames are padded by reflection
    if half < 1:
        return None
    try:
        measure = import_module("torchmetrics.functional.image").structural_similarity_index_measure
    except ImportError:
        return None
    if np.array_equal(base, clip):
        return 1.0  # in float32 the formula misses it by 0.00001
    sigma = SIGMA if half == whole else half / REACH
    first, second = (_channels(choose_frames(side, FRAMES)) for side in (base, clip))
    size = max(1, BATCH // first[0].numel())
    total = 0.0
    for one, other in zip(first.split(size), second.split(size), strict=True):
        total += float(measure(other, one, sigma=sigma, data_range=1.0)) * len(one)
    mean = total / len(first)
    return mean if math.isfinite(mean) else None


def _channels(frames: Clip) -> Tensor:
    """Return frames as (frames, channels, height, width), 0 to 1."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
