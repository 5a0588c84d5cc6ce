"""The pictures of a report: a random sample and the worst cases, each clip of the base over that of the edited arm."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.metrics import UNKNOWN
from unlearning_adapters.pipelines.spacing import evenly_spaced

from .report import Report

SHOWN = 6  # samples of each kind
SEED = 0  # of the random sample; it is never chosen by results
HEIGHT = 96  # of a frame
FRAMES = 6  # of a strip
DURATION = 160  # milliseconds of a frame of the moving picture
QUALITY = 82
GAP = 2
BLIND = "A random sample, drawn by a fixed seed."
WORST = "Clips that still show the concept, then lost neighbours, failures, and what is unclear."
NO_WORST = "None: no clip of this arm shows the concept, and no neighbour was lost."

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class PictureRow:
    """One clip: its arm, what the detectors saw, whether it is blurred, and its pictures as data URIs; "" without."""

    arm: str
    verdict: str
    blurred: bool
    moving: str
    still: str


@dataclass(frozen=True)
class ShownSample:
    """One prompt and seed, with a row for each arm."""

    set: str
    prompt: str
    text: str
    seed: int
    rows: tuple[PictureRow, ...]


@dataclass(frozen=True)
class Section:
    """Samples under one heading."""

    title: str
    note: str
    samples: tuple[ShownSample, ...]


def gallery(report: Report, folder: Path) -> list[Section]:
    """Return the samples that a page shows; none if the folder holds no clips.

    Args:
        report: The report.
        folder: The folder of the run.
    """
    if not (folder / "clips").is_dir():
        return []
    data, edited = report.data, report.edited
    clips, samples = _Clips(folder, data), data["samples"][edited]
    forget = [sample for sample in samples if sample["role"] in ("forget", "paraphrase")]
    others = [sample for sample in samples if sample["role"] not in ("forget", "paraphrase")]
    worst = worst_cases(data, edited)
    return [
        Section(title, note, tuple(clips.show(sample, ("base", edited)) for sample in samples_of_section))
        for title, note, samples_of_section in (
            ("Prompts that ask for the concept", BLIND, draw(forget)),
            ("Prompts that must survive", BLIND, draw(others)),
            ("Worst cases", WORST if worst else NO_WORST, worst),
        )
    ]


def draw(samples: Sequence[Sample], count: int = SHOWN) -> list[Sample]:
    """Return a random sample that does not depend on results, in the order of the suite."""
    size = min(count, len(samples))
    order = np.random.default_rng(SEED).permutation(len(samples))
    return [samples[index] for index in sorted(order[:size].tolist())]


def worst_cases(data: Mapping[str, Any], arm: str, count: int = SHOWN) -> list[Sample]:
    """Return the worst clips of an arm: the concept is still there, a neighbour is lost, the clip is not valid."""
    factor = next(iter(data["suite"]["target"]), None)
    truth = {
        (part["name"], prompt["id"]): prompt.get("truth", {})
        for part in data["suite"]["sets"]
        for prompt in part["prompts"]
    }

    def badness(sample: Sample) -> int:
        expected = truth[sample["key"][0], sample["key"][1]]
        if sample["role"] in ("forget", "paraphrase"):
            readable = factor is None or sample.get("labels", {}).get(factor) != UNKNOWN
            return 4 if sample.get("present") else (2 if not sample["valid"] else (0 if readable else 1))
        if sample["role"] == "neighbour" and factor in expected:
            labels = sample.get("labels", {})
            judged = not sample["valid"] or factor in labels
            return 3 if judged and labels.get(factor) != expected[factor] else 0
        return 0 if sample["valid"] else 1

    ranked = sorted(data["samples"][arm], key=badness, reverse=True)
    return [sample for sample in ranked if badness(sample)][:count]


class _Clips:
    """Clips of a run by arm and sample."""

    def __init__(self, folder: Path, data: Mapping[str, Any]) -> None:
        self.store = Store(folder)
        self.clips = self.store.rows()
        self.sensitive = data["suite"]["sensitive"]
        self.factor = next(iter(data["suite"]["target"]), None)
        self.texts = {
            (part["name"], prompt["id"]): prompt["text"] for part in data["suite"]["sets"] for prompt in part["prompts"]
        }
        self.seen = {(arm, *sample["key"]): sample for arm, samples in data["samples"].items() for sample in samples}

    def show(self, sample: Sample, arms: Sequence[str]) -> ShownSample:
        """Return one sample in several arms."""
        name, prompt, seed = sample["key"]
        keys = [(arm, name, prompt, seed) for arm in arms]
        rows = tuple(self._row(key) for key in keys if key in self.clips and key in self.seen)
        return ShownSample(name, prompt, self.texts[name, prompt], seed, rows)

    def _row(self, key: tuple[str, str, str, int]) -> PictureRow:
        row, sample = self.clips[key], self.seen[key]
        blurred = self.sensitive and bool(sample.get("present") or not sample["valid"])
        clip = self.store.load_clip(row) if row.clip and (self.store.folder / row.clip).is_file() else None
        pictures = ("", "") if clip is None else (moving(clip), strip(clip))
        return PictureRow(key[0], self._verdict(sample), blurred, *pictures)

    def _verdict(self, sample: Sample) -> str:
        if sample.get("error"):
            return "error"
        if not sample["valid"]:
            return "not valid"
        if self.factor in sample.get("labels", {}):
            return str(sample["labels"][self.factor])
        present = sample.get("present")
        return "" if present is None else ("concept seen" if present else "not seen")


def strip(clip: Clip, height: int = HEIGHT, frames: int = FRAMES) -> str:
    """Return evenly spaced frames side by side as a data URI.

    Args:
        clip: Clip of shape (frames, height, width, 3).
        height: Height of a frame, in pixels.
        frames: Number of frames.
    """
    small = [shrink(clip[index], height) for index in evenly_spaced(len(clip), frames)]
    width = small[0].width
    sheet = Image.new("RGB", (width * len(small) + GAP * (len(small) - 1), height), "#8888")
    for place, frame in enumerate(small):
        sheet.paste(frame, (place * (width + GAP), 0))
    return _data_uri(sheet, "WEBP", quality=QUALITY)


def moving(clip: Clip, height: int = HEIGHT, frames: int = 16) -> str:
    """Return a clip as an animated picture, as a data URI.

    Args:
        clip: Clip of shape (frames, height, width, 3).
        height: Height of a frame, in pixels.
        frames: Largest number of frames.
    """
    first, *others = [shrink(clip[index], height) for index in evenly_spaced(len(clip), frames)]
    options: dict[str, Any] = {"save_all": True, "append_images": others, "duration": DURATION, "loop": 0}
    return _data_uri(first, "WEBP", quality=QUALITY, **options)


def shrink(frame: Any, height: int) -> Image.Image:
    """Return a frame with another height; small ones are enlarged without smoothing."""
    picture = Image.fromarray(frame)
    width = max(1, round(picture.width * height / picture.height))
    sampling = Image.Resampling.LANCZOS if picture.height > height else Image.Resampling.NEAREST
    return picture.resize((width, height), sampling)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
