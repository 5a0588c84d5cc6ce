"""Measure how well the reads of the shipped concepts know their held-out prompts: python -m benchmarks.packs.

Writes benchmarks/packs.json and benchmarks/packs.md. For each concept for real models a read is made from its first
five and from all of its pairs, from what a pretrained text encoder (all-MiniLM-L6-v2) writes for them, and put to the
prompts that the concept holds out: those that show it, often without its words, and its neighbours. No clip is made,
for no video model is small enough here: this says what an edit would take from a prompt, not what a video then shows.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unlearning_adapters as ua
from unlearning_adapters.methods.registry import find_direction, find_strength
from unlearning_adapters.methods.rows import GroupRows, NeutralRows

FILE = Path(__file__).parent / "packs.json"
CONCEPTS = ("nudity", "graphic-violence", "copyrighted-characters", "trademarks", "public-figures")
PAIRS = (5, 10)
METHODS = ("ridge", "uce", "cpca")
BATCH = 16


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return what the text encoder writes for the tokens of each prompt, shape (tokens, features)."""
    rows: list[Tensor] = []
    for start in range(0, len(prompts), BATCH):
        inputs = pipe.tokenizer(list(prompts[start : start + BATCH]), padding=True, return_tensors="pt")
        states = pipe.text_encoder(**inputs).last_hidden_state.float()
        rows += [state[mask.bool()] for state, mask in zip(states, inputs.attention_mask, strict=True)]
    return tuple(rows)


def measure(pipe: Any, name: str, neutral_count: int | None = None) -> list[dict[str, Any]]:
    """Return a row per method and number of pairs.

    `taken` is the largest part of the concept that the edit takes from a token of a held-out prompt that shows it (the
    median prompt and the lowest tenth), `neighbours` the mean of the same for neighbours, and `told apart` how often a
    prompt that shows the concept reads as more than a neighbour (the area under the ROC curve).
    `neutral_count` takes the first neutral prompts alone.
    """
    concept = ua.load_concept(name)
    shown, beside = encode(pipe, concept.evaluation), encode(pipe, concept.neighbours)
    neutral = NeutralRows(encode(pipe, concept.neutral[:neutral_count]), guidance=encode(pipe, [""]))
    found = []
    for method in METHODS:
        for count in PAIRS:
            pairs = concept.pairs[:count]
            sides = (encode(pipe, [pair.unsafe for pair in pairs]), encode(pipe, [pair.safe for pair in pairs]))
            rows, config = GroupRows.of_sides(*sides, neutral), ua.BuildConfig(method=method)
            read = find_direction(rows, config, torch.Generator()).read
            strength = find_strength(rows, config, torch.Generator())
            taken, kept = (
                np.array([strength * float((prompt @ read.T).norm(dim=1).max()) for prompt in prompts])
                for prompts in (shown, beside)
            )
            found.append(
                {
                    "method": method,
                    "pairs": count,
                    "strength": strength,
                    "taken": float(np.median(taken)),
                    "lowest tenth": float(np.quantile(taken, 0.1)),
                    "neighbours": float(kept.mean()),
                    "told apart": float((taken[:, None] > kept).mean()),
                }
            )
    return found


def page(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return what packs.md holds: what "ridge" takes, whose reads are parts of the concept, and the areas of all."""
    heads = ["concept", "pairs", "strength", "taken", "lowest tenth", "neighbours"]
    heads += [f"told apart, {method}" for method in METHODS]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for name, rows in results.items():
        for count in PAIRS:
            by = {row["method"]: row for row in rows if row["pairs"] == count}
            ours = [f"{by['ridge'][key]:.2f}" for key in ("strength", "taken", "lowest tenth", "neighbours")]
            apart = [f"{by[method]['told apart']:.2f}" for method in METHODS]
            lines.append(_row([name, str(count), *ours, *apart]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure all concepts; a minute."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    pipe = ua.load_shapeworld_language()  # for its text encoder
    results = {name: measure(pipe, name) for name in CONCEPTS}
    options.file.write_text(json.dumps(results, indent=1) + "\n")
    options.file.with_suffix(".md").write_text(page(results) + "\n")
    print(page(results))


if __name__ == "__main__":
    main()
