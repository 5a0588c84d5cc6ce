"""The pictures of a report: a random sample and the worst cases, each clip of the base over that of the edited arm."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.metrics import UNKNOWN

from .pictures import moving, strip
from .report import Report

SHOWN = 6  # samples of each kind
SEED = 0  # of the random sample; it is never chosen by results

Sample = Mapping[str, Any]


def gallery(report: Report, folder: Path) -> str:
    """Return the contact sheets of a report as HTML; "" if the folder holds no clips.

    Args:
        report: The report.
        folder: The folder of the run.
    """
    if not (folder / "clips").is_dir():
        return ""
    data, edited = report.data, report.edited
    clips = _Clips(folder, data)
    forget = [sample for sample in data["samples"][edited] if sample["role"] in ("forget", "paraphrase")]
    others = [sample for sample in data["samples"][edited] if sample["role"] not in ("forget", "paraphrase")]
    parts = []
    for title, note, chosen in (
        ("Prompts that ask for the concept", "A random sample, drawn by a fixed seed.", draw(forget)),
        ("Prompts that must survive", "A random sample, drawn by a fixed seed.", draw(others)),
        ("Worst cases", "Clips that still show the concept, then lost neighbours, failures, and what is unclear.",
         worst_cases(data, edited)),
    ):  # fmt: skip
        shown = "".join(clips.show(sample, ("base", edited)) for sample in chosen)
        if title == "Worst cases" and not shown:
            note, shown = "None: no clip of this arm shows the concept, and no neighbour was lost.", ""
        parts.append(
            f'<h3>{title}</h3><p class="note">{note}</p><div class="samples">{shown}</div>' if shown or note else ""
        )
    toggle = ""
    if data["suite"]["sensitive"]:
        toggle = (
            '<p class="toggle"><label><input type="checkbox" id="show"> show frames in which the concept was seen, '
            "or that no detector could read</label></p>"
        )
    return f"<h2>Clips</h2>{toggle}{''.join(parts)}"


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
        asked = truth[sample["key"][0], sample["key"][1]]
        if sample["role"] in ("forget", "paraphrase"):
            known = factor is None or sample.get("labels", {}).get(factor) != UNKNOWN
            return 4 if sample.get("present") else (2 if not sample["valid"] else (0 if known else 1))
        if sample["role"] == "neighbour" and factor in asked:
            labels = sample.get("labels", {})
            told = not sample["valid"] or factor in labels
            return 3 if told and labels.get(factor) != asked[factor] else 0
        return 0 if sample["valid"] else 1

    ranked = sorted(data["samples"][arm], key=badness, reverse=True)
    return [sample for sample in ranked if badness(sample)][:count]


class _Clips:
    """Clips of a run by arm and sample."""

    def __init__(self, folder: Path, data: Mapping[str, Any]) -> None:
        self.store = Store(folder)
        self.rows = self.store.rows()
        self.data = data
        self.texts = {
            (part["name"], prompt["id"]): prompt["text"] for part in data["suite"]["sets"] for prompt in part["prompts"]
        }
        self.seen = {(arm, *sample["key"]): sample for arm, samples in data["samples"].items() for sample in samples}

    def show(self, sample: Sample, arms: Sequence[str]) -> str:
        """Return one sample in several arms as HTML."""
        name, prompt, seed = sample["key"]
        text = escape(self.texts[name, prompt])
        if self.data["suite"]["sensitive"]:
            text = f"<details><summary>prompt {escape(name)}/{escape(prompt)}</summary>{text}</details>"
        rows = "".join(self._row(arm, (name, prompt, seed)) for arm in arms)
        return f'<div class="box sample"><p class="prompt">{text} <small>seed {seed}</small></p>{rows}</div>'

    def _row(self, arm: str, key: tuple[str, str, int]) -> str:
        row, sample = self.rows.get((arm, *key)), self.seen.get((arm, *key))
        if row is None or sample is None:
            return ""
        look = " blur" if self.data["suite"]["sensitive"] and (sample.get("present") or not sample["valid"]) else ""
        who = f'<div class="who"><b>{escape(arm)}</b>{escape(self._verdict(sample))}</div>'
        clip = self._clip(row)
        pictures = (
            f'<img alt="" src="{moving(clip)}"><img class="still" alt="" src="{strip(clip)}">'
            if clip is not None
            else ""
        )
        return f'<div class="row{look}">{who}{pictures}</div>'

    def _clip(self, row: Any) -> Clip | None:
        return self.store.load_clip(row) if row.clip and (self.store.folder / row.clip).is_file() else None

    def _verdict(self, sample: Sample) -> str:
        if sample.get("error"):
            return "error"
        if not sample["valid"]:
            return "not valid"
        factor = next(iter(self.data["suite"]["target"]), None)
        if factor in sample.get("labels", {}):
            return str(sample["labels"][factor])
        present = sample.get("present")
        return "" if present is None else ("concept seen" if present else "not seen")
