"""`unlearn search`: the settings that forget most and change least."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.guided import SEARCH_FOLDER, at_terminal
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.cli.records.record import write_record as write_reproduction
from unlearning_adapters.cli.time_budget import option as budget_option
from unlearning_adapters.cli.time_budget import time_budget as limit
from unlearning_adapters.config import METHODS

FRONT_PAGE = "front.html"
COLUMNS = ("trial", "method", "rank", "epsilon", "contrast", "blocks", "strength", "left", "drift")
INTERRUPTED = 130


@command("search", "find the settings that forget most and change least, and build with them")
@options.pipeline
@options.concept
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default=SEARCH_FOLDER,
    help=f"folder to write to; a search that it holds is continued (default: {SEARCH_FOLDER})",
)
@click.option(
    "--trials", type=options.COUNT, metavar="N", help="settings to try, with those tried before (default: 100)"
)
@click.option("--seed", type=int, default=0, help="seed of the noise and of the search (default: 0)")
@click.option(
    "--clips",
    type=options.COUNT,
    metavar="N",
    help="ShapeWorld, CastWorld: judged prompts of each kind (default: 12); elsewhere: make clips of the front",
)
@click.option("--one-strength", is_flag=True, help="the same strength for all blocks")
@click.option(
    "--look", is_flag=True, help="write a page with clips of the front side by side; at a terminal, choose one"
)
@click.option("--choose", type=int, metavar="N", help="save the front's trial N, in place of the one that is chosen")
@budget_option
@options.frame_size
@options.placement
def search(
    pipeline: str,
    concept: str,
    output: str,
    trials: int | None,
    seed: int,
    clips: int | None,
    one_strength: bool,
    look: bool,
    choose: int | None,
    time_budget: float | None,
    dtype: str | None,
    device: str | None,
    **call: int | None,
) -> CommandResult:
    """Search settings, save the adapter of the chosen ones, and generate for the front alone."""
    from unlearning_adapters.concepts.concept import load_concept

    forgotten = load_concept(concept)
    from unlearning_adapters.search.search import TRIALS, Search, load_optuna, run_search, write_record
    from unlearning_adapters.shapeworld.models.generate import generation_of

    load_optuna()  # before the pipeline, which takes longer
    pipe = open_pipeline(pipeline, dtype, device)
    arguments = {**generation_of(pipe), **options.given(call)}
    few = {name: value for name, value in arguments.items() if name != "num_inference_steps"}  # the proxy has its own
    settings_search = Search(pipe, forgotten, seed=seed, one_strength=one_strength, call_kwargs=few)
    folder = Path(output)
    result = None
    with limit(time_budget) as budget:
        result = run_search(settings_search, folder, trials or TRIALS)
    if result is None:
        text = f"{output}: the time is over, and the search is not; the same command goes on with it"
        return CommandResult({"folder": output, "unfinished": True}, text)
    record = dict(result.record)
    if not result.interrupted:
        record |= _generation(settings_search, result, folder, arguments, clips)
        record |= _choice(settings_search, result, folder, record, arguments, look, choose)
        write_record(folder, record)
        best = next(trial for trial in record["trials"] if trial["number"] == record["best"])
        write_reproduction(
            folder,
            pipe,
            pipeline,
            prompts={"pairs": [forgotten.pairs_hash], "neutral": forgotten.neutral, "held out": forgotten.evaluation},
            seeds={"search": seed},
            results={"best": best, "front": list(record["front"]), "trials": len(record["trials"])},
        )
    return CommandResult(record, _text(record, folder), INTERRUPTED if result.interrupted and not budget.over else 0)


def _choice(
    search: Any,
    result: Any,
    folder: Path,
    record: Mapping[str, Any],
    arguments: Mapping[str, Any],
    look: bool,
    choose: int | None,
) -> dict[str, Any]:
    """Write the page of the front if it is asked for, save the chosen trial, and return what that changes."""
    from unlearning_adapters.cli.front_page import chosen_trial, write_front_page
    from unlearning_adapters.search.front import show_front
    from unlearning_adapters.search.search import BEST

    changes: dict[str, Any] = {}
    if look:
        changes["clips"] = record.get("clips") or show_front(search, result, folder, arguments)
        page = write_front_page(folder, {**record, **changes})
        if choose is None and at_terminal():
            click.echo(_text({**record, **changes}, folder), err=True)
            choose = click.prompt(f"Look at {page}. Which trial", default=record["best"], type=int, err=True)
    if choose is not None:
        trial = chosen_trial(result.front, choose)
        search.adapter(trial.config).save_pretrained(folder / BEST)
        changes["best"] = trial.number
        if look:
            write_front_page(folder, {**record, **changes})
    return changes


def _generation(
    search: Any, result: Any, folder: Path, arguments: Mapping[str, Any], clips: int | None
) -> dict[str, Any]:
    """Return what full generation gave for the front: rates on an embedded world, elsewhere clips if asked for."""
    from unlearning_adapters.evaluation.suites.worlds import world_of
    from unlearning_adapters.search.front import JUDGED_CLIPS, judge_front, show_front

    world = world_of(search.pipe)
    if world and search.split.concept.target:
        return {"generation": judge_front(search, result, world, clips or JUDGED_CLIPS)}
    return {"clips": show_front(search, result, folder, arguments)} if clips else {}


def _text(record: Mapping[str, Any], folder: Path) -> str:
    """Return the table of the front, what was chosen, and where everything is."""
    trials = {trial["number"]: trial for trial in record["trials"]}
    tests = {test["number"]: test for test in record["test"]}
    generation = record.get("generation", {"front": []})
    judged = {row["number"]: row for row in generation["front"]}
    heads = [*COLUMNS, *(("test left", "test drift") if tests else ()), *(("shown", "kept") if judged else ())]
    rows = []
    for number in record["front"]:
        row = [*_cells(trials[number]), *(_numbers(tests[number], "leftover", "drift") if tests else ())]
        if judged:
            row += _numbers(judged[number], "concept_rate", "preservation") if number in judged else ["", ""]
        rows.append([*row, "chosen" if number == record["best"] else ""])
    forget, retain = record["prompts"]["validation"]
    lines = [
        f"{record['concept']}: {len(trials)} trials on {forget} held-out prompts that name it and {retain} that must "
        f"not change{'; interrupted' if record['interrupted'] else ''}",
        "",
        *_aligned([[*heads, ""], *rows]),
        "",
        "left: what is left of the concept in single predictions (0.9 quantile); drift: relative change elsewhere",
    ]
    if judged:
        base, correlations = generation["base"], generation["rank_correlation"]
        lines += [
            f"shown, kept: rates in {generation['clips']} + {generation['clips']} generated clips; "
            f"base {base['concept_rate']:.2f}, {base['preservation']:.2f}",
            "rank correlation with full generation: "
            + ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in correlations.items()),
        ]
    names = ("best", "front.svg", "trials.jsonl", "search.json", *(("clips",) if "clips" in record else ()))
    names += (FRONT_PAGE,) if (folder / FRONT_PAGE).is_file() else ()
    return "\n".join([*lines, "", *(str(folder / name) for name in names)])


def _cells(trial: Mapping[str, Any]) -> list[str]:
    settings = trial["settings"]
    method, blocks = settings["method"], settings["blocks"]
    return [
        str(trial["number"]),
        method,
        str(settings["rank"]),
        f"{settings['epsilon']:.2g}" if "epsilon" in METHODS[method].settings else "",
        f"{settings['contrast']:.2g}" if "contrast" in METHODS[method].settings else "",
        "all" if blocks is None else f"{blocks[0]}-{blocks[-1]}",
        f"{settings['strength']:.2f}{_factors(settings.get('block_strengths'))}",
        *_numbers(trial, "leftover", "drift"),
    ]


def _factors(by_block: Mapping[str, float] | None) -> str:
    """Return the range of the factors by which blocks multiply the strength."""
    return f" x {min(by_block.values()):.2f}-{max(by_block.values()):.2f}" if by_block else ""


def _numbers(values: Mapping[str, Any], *names: str) -> list[str]:
    return [f"{values[name]:.3f}" for name in names]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
