"""Any concept in words by a CLIP model of transformers, zero-shot: which texts a frame is most like."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError

from .detector import FRAMES, Detection, Detector, check_count, choose_frames, detector_factory, split_texts
from .loading import describe_model, load_pretrained

THRESHOLD = 0.5


@detector_factory
def clip(
    model: Any = None,
    positive: str | Iterable[str] = (),
    negative: str | Iterable[str] = (),
    processor: Any = None,
    frames: float = FRAMES,
    batch: float = 16,
    device: str = "cpu",
) -> Detector:
    """Return the detector of a concept that texts describe.

    The score of a frame x is `sum_(t positive) softmax_t(s cos(x, t))`, the softmax over all texts, s the model's own
    scale (A. Radford et al., 2021): 0 to 1, and p / (p + n) where the p positive and n negative texts fit equally well.

    Args:
        model: Path or Hub id of a CLIP model, or a model that is loaded already.
        positive: Texts that describe the concept, a list or "a red car|a red bus".
        negative: Texts that describe what else could be there.
        processor: The model's processor; None loads it from where the model is.
        frames: Frames of a clip that are looked at, evenly, 0 for all.
        batch: Frames per call of the model.
        device: Where the model runs.

    Raises:
        EvaluationError: If there is no model, no processor, or no texts on one of the sides.
    """
    for_it, against = split_texts("positive of clip", positive), split_texts("negative of clip", negative)
    count, size = check_count("the frames of clip", frames), check_count("the batch of clip", batch)
    if size < 1:
        raise EvaluationError(f"Expected the batch of clip to be at least 1, but got {size}.")
    network, prepare = load_pretrained(
        "clip", model, processor, AutoModelForZeroShotImageClassification, AutoProcessor, device
    )

    def look(frames: Clip) -> Detection:
        pictures = choose_frames(frames, count)
        parts = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        return Detection(tuple(p for part in parts for p in probabilities(network, prepare, part, for_it, against)))

    settings = {
        "positive": for_it, "negative": against, "chance": len(for_it) / (len(for_it) + len(against)), "frames": count,
        "channels": "RGB", "resize": "by the model's processor", **describe_model(model, network),
    }  # fmt: skip
    return Detector("clip", look, threshold=THRESHOLD, settings=settings)


@torch.inference_mode()
def probabilities(model: Any, processor: Any, frames: Clip, positive: list[str], negative: list[str]) -> list[float]:
    """Return the probability of the positive texts for each frame.

    Args:
        model: A model of transformers that returns `logits_per_image` of shape (frames, texts).
        processor: Its processor.
        frames: Frames of shape (frames, height, width, 3), RGB.
        positive: Texts that describe the concept.
        negative: Other texts.
    """
    images = [Image.fromarray(frame) for frame in frames]  # a picture tells its channels, an array may not
    inputs = processor(text=[*positive, *negative], images=images, return_tensors="pt", padding=True)
    logits = model(**inputs.to(model.device, model.dtype)).logits_per_image.float()
    return [float(value) for value in logits.softmax(dim=-1)[:, : len(positive)].sum(dim=-1)]
