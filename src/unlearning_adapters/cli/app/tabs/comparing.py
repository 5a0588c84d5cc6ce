"""The tab Compare: the same prompts and seeds, without and with adapters."""

import time
from collections.abc import Sequence
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job, collected_warnings
from unlearning_adapters.cli.app.player import compared, grid, video
from unlearning_adapters.cli.app.session import Session
from unlearning_adapters.errors import ConfigError

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
MOST_PROMPTS = 6


def edits_of(session: Session, switches: Sequence[bool], dials: Sequence[float]) -> list[tuple[str, Any, float]]:
    """Return name, adapter and strength of what is switched on, in the order of the page."""
    rows = zip(session.entries.items(), switches, dials, strict=False)
    return [(name, entry.adapter, float(dial)) for (name, entry), on, dial in rows if on]


def noted(edits: Sequence[tuple[str, UnlearningAdapter, float]]) -> str:
    """Return adapters with their strengths as text."""
    return ", ".join(f"{name} at {strength:g}" for name, _, strength in edits) or "nothing is switched on"


def compare(
    bench: Bench, session: Session, prompt: str, seed: int, edits: Sequence[tuple[str, Any, float]], job: Job
) -> dict[str, Any]:
    """Make a clip without and with adapters.

    Returns:
        "original" and "edited" clips, "html" that plays them, "warnings" and "seconds".

    Raises:
        ConfigError: If there is no prompt.
    """
    if not prompt.strip():
        raise ConfigError("There is no prompt. Write what the clip should show.")
    start, texts = time.perf_counter(), list[str]()
    with collected_warnings(texts):
        (original,) = bench.clips(job, [(prompt.strip(), seed)], [])
        (edited,) = bench.clips(job, [(prompt.strip(), seed)], [(adapter, value) for _, adapter, value in edits])
    note = noted(edits)
    films = video(original, session.folder, "original"), video(edited, session.folder, f"edited: {note}")
    html = compared(*films, f"{prompt.strip()} (seed {seed})", note)
    return {
        "original": original, "edited": edited, "html": html, "warnings": texts, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def compare_grid(
    bench: Bench, session: Session, prompts: str, seed: int, edits: Sequence[tuple[str, Any, float]], job: Job
) -> dict[str, Any]:
    """Make clips of each prompt at each strength; the strengths of several adapters are multiplied alike.

    Args:
        bench: The pipeline.
        session: The page.
        prompts: A prompt on each line.
        seed: The same for all.
        edits: Name, adapter and strength of each; of several, the strengths are those of the column 1.
        job: Who asks.

    Returns:
        "html" that plays all, and "seconds".
    """
    texts = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not texts or len(texts) > MOST_PROMPTS:
        raise ConfigError(f"Expected 1 to {MOST_PROMPTS} prompts, one on each line, but got {len(texts)}.")
    if not edits:
        raise ConfigError("No adapter is switched on. Build one in the tab Forget, or switch one on.")
    start, single = time.perf_counter(), len(edits) == 1
    columns = []
    for factor in STRENGTHS:
        active = [(adapter, factor * (1.0 if single else value)) for _, adapter, value in edits]
        columns.append(bench.clips(job, [(prompt, seed) for prompt in texts], active))
    rows = []
    for place, prompt in enumerate(texts):
        films = [
            video(column[place], session.folder, f"{prompt}, {factor:g}")
            for factor, column in zip(STRENGTHS, columns, strict=True)
        ]
        rows.append((prompt, films))
    heads = [f"{'' if single else 'x '}{factor:g}" for factor in STRENGTHS]
    return {"html": grid(heads, rows), "seconds": time.perf_counter() - start}
