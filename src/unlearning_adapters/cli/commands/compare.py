"""`unlearn compare`: every method on one concept, built, measured and put into one table."""

import json
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline, open_suite
from unlearning_adapters.cli.records.record import write_record
from unlearning_adapters.config import METHODS, BuildConfig, check_keys
from unlearning_adapters.errors import ConfigError

NAME = "compare"


@command("compare", "build all methods on one concept, and measure them side by side")
@options.pipeline
@options.concept
@options.output("DIR", "folder; the same command goes on where it was stopped")
@click.option(
    "--methods",
    type=options.listed(str, "ridge,uce"),
    metavar="NAME,NAME",
    help=f"out of {', '.join(METHODS)} (default: all); each has the strength that its build gives it: one number means "
    "another thing to each method. For strengths of your choice: `unlearn build --method NAME --strength X`, then "
    "`unlearn eval --strength X --rival ADAPTER`",
)
@click.option("--esd", is_flag=True, help="add ESD, which is trained: a costly reference")
@options.name_values("--esd-set", "setting of ESD, such as steps=400; repeat it", str, "steps=400")
@options.gold
@options.suite("the concept")
@options.detectors
@options.clips
@options.batch()
@options.gate
@options.placement
def compare(
    pipeline: str,
    concept: str,
    output: str,
    methods: tuple[str, ...] | None,
    esd: bool,
    esd_set: dict[str, str],
    gold: str | None,
    suite: str | None,
    detectors: tuple[str, ...],
    clips: int | None,
    batch: int,
    gate: float | None,
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Build and measure all methods, and write compare.json, compare.md and compare.svg."""
    from unlearning_adapters.concepts.concept import load_concept

    forgotten = load_concept(concept)
    prompts, esd_settings = open_suite(suite or forgotten, clips), _esd_settings(esd, esd_set)
    from unlearning_adapters.evaluation.comparison.compare import COMPARED, compare_methods
    from unlearning_adapters.evaluation.comparison.table import to_plot, to_table
    from unlearning_adapters.evaluation.suites.worlds import suite_for

    folder = Path(output)
    pipe = open_pipeline(pipeline, dtype, device)
    measured = suite_for(prompts, pipe)
    data, report = compare_methods(
        pipe,
        forgotten,
        measured,
        folder,
        COMPARED if methods is None else tuple(name for name in methods if name in COMPARED or name not in METHODS),
        list(detectors) or None,
        esd=esd_settings,
        gold=None if gold is None else open_pipeline(gold, dtype, device),
        gate=gate,
        batch_size=batch,
    )
    report.save(folder)
    text = to_table(data)
    files = [folder / f"{NAME}.{suffix}" for suffix in ("json", "md", "svg")]
    contents = (json.dumps(data, indent=1, allow_nan=False) + "\n", text, to_plot(data))
    for file, content in zip(files, contents, strict=True):
        file.write_text(content, encoding="utf-8")
    write_record(
        folder,
        pipe,
        pipeline,
        prompts={part.name: [prompt.text for prompt in part.prompts] for part in measured.sets}
        | {"pairs": [forgotten.pairs_hash], "neutral": forgotten.neutral},
        seeds={"build": BuildConfig().seed},
        results={"status": data["status"], "rows": data["rows"]},
    )
    names = [str(file) for file in files]
    return CommandResult({**data, "files": names}, "\n".join((text, *names)))


def _esd_settings(esd: bool, values: dict[str, str]) -> Any:
    """Return the settings of ESD; None if it is not asked for."""
    if not esd:
        if values:
            raise ConfigError("--esd-set sets how ESD is trained, and there is no --esd. Add it.")
        return None
    from unlearning_adapters.evaluation.comparison.esd import EsdSettings

    kinds: dict[str, Any] = {name: type(value) for name, value in EsdSettings().to_dict().items()}
    check_keys("--esd-set", values, set(kinds))
    settings = {}
    for name, value in values.items():
        try:
            settings[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(f"Expected a number for `{name}` in --esd-set, but got {value!r}.") from None
    return EsdSettings(**settings)
