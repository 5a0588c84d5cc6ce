"""The command `unlearn search`: its options, and what it does."""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearning_adapters.config import METHOD_SETTINGS

from .commands import SHAPEWORLD, Report, open_pipeline

OUTPUT = "unlearn-search"
TRIALS = 100
CALL_OPTIONS = {"height": "height", "width": "width", "frames": "num_frames"}
COLUMNS = ("trial", "method", "rank", "epsilon", "contrast", "blocks", "strength", "left", "drift")
INTERRUPTED = 130


def search_options(command: ArgumentParser) -> None:
    """Add the options of `unlearn search`; none is needed."""
    command.add_argument("pipeline", metavar="PIPELINE", help="'shapeworld', a local folder or a Hub repository")
    command.add_argument("concept", metavar="CONCEPT", help="a shipped concept, or a .yaml or .jsonl file")
    add = command.add_argument
    add(
        "-o",
        "--output",
        metavar="DIR",
        default=OUTPUT,
        help=f"folder to write to; a search in it is gone on with (default: {OUTPUT})",
    )
    add("--trials", type=_count, default=TRIALS, help=f"settings to try, with those tried before (default: {TRIALS})")
    add("--seed", type=int, default=0, help="seed of the noise and of the search (default: 0)")
    add(
        "--clips",
        type=_count,
        metavar="N",
        help="prompts of each kind that are judged (ShapeWorld alone; default: 12); elsewhere, given at all, it asks "
        "for clips of the front",
    )
    add("--one-strength", action="store_true", help="the same strength for all blocks")
    for name in CALL_OPTIONS:
        add(f"--{name}", type=_count, default=SUPPRESS, help=f"{name} of the video (default: the pipeline's own)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="number type of the weights (default: by device)")
    add("--device", help="where to run, such as cuda (default: a GPU if there is one)")


def search(options: Namespace) -> Report:
    """Search settings, save the adapter of the chosen ones, and generate for the front alone."""
    from unlearning_adapters.concepts.concept import load_concept

    concept = load_concept(options.concept)
    from unlearning_adapters.search.search import Search, load_optuna, run_search, write_record

    load_optuna()  # before the pipeline, which takes longer
    pipe = open_pipeline(options.pipeline, options.dtype, options.device)
    arguments = _arguments(pipe, options)
    few = {name: value for name, value in arguments.items() if name != "num_inference_steps"}  # the proxy has its own
    searched = Search(pipe, concept, seed=options.seed, one_strength=options.one_strength, call_kwargs=few)
    folder = Path(options.output)
    result = run_search(searched, folder, options.trials)
    record = dict(result.record)
    if not result.interrupted:
        record |= _generation(options, searched, result, folder, arguments)
        write_record(folder, record)
    return Report(record, _text(record, folder), INTERRUPTED if result.interrupted else 0)


def _arguments(pipe: Any, options: Namespace) -> dict[str, Any]:
    from unlearning_adapters.shapeworld.models.generate import generation_of

    given = {argument: getattr(options, name) for name, argument in CALL_OPTIONS.items() if hasattr(options, name)}
    return {**generation_of(pipe), **given}


def _generation(
    options: Namespace, searched: Any, result: Any, folder: Path, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what full generation gave for the front: rates on ShapeWorld, clips elsewhere if they are asked for."""
    from unlearning_adapters.search.front import JUDGED_CLIPS, judge_front, show_front

    if Path(options.pipeline).name.startswith(SHAPEWORLD) and searched.split.concept.target:
        return {"generation": judge_front(searched, result, options.clips or JUDGED_CLIPS)}
    return {"clips": show_front(searched, result, folder, arguments)} if options.clips else {}


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
    named, kept = record["prompts"]["validation"]
    lines = [
        f"{record['concept']}: {len(trials)} trials on {named} held-out prompts that name it and {kept} that must not "
        f"change{'; interrupted' if record['interrupted'] else ''}",
        "",
        *_aligned([[*heads, ""], *rows]),
        "",
        "left: what is left of the concept in single predictions (0.9 quantile); drift: relative change elsewhere",
    ]
    if judged:
        base, found = generation["base"], generation["rank_correlation"]
        lines += [
            f"shown, kept: rates in {generation['clips']} + {generation['clips']} generated clips; "
            f"base {base['concept_rate']:.2f}, {base['preservation']:.2f}",
            "rank correlation with full generation: "
            + ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in found.items()),
        ]
    names = ("best", "front.svg", "trials.jsonl", "search.json", *(("clips",) if "clips" in record else ()))
    return "\n".join([*lines, "", *(str(folder / name) for name in names)])


def _cells(trial: Mapping[str, Any]) -> list[str]:
    settings = trial["settings"]
    method, blocks = settings["method"], settings["blocks"]
    return [
        str(trial["number"]),
        method,
        str(settings["rank"]),
        f"{settings['epsilon']:.2g}" if "epsilon" in METHOD_SETTINGS[method] else "",
        f"{settings['contrast']:.2g}" if "contrast" in METHOD_SETTINGS[method] else "",
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a number of at least 1, but got {text!r}")
    return int(text)
