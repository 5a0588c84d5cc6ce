"""The command `unlearn compare`: every method on one concept, built, measured and put into one table."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from unlearning_adapters.config import METHODS, check_keys
from unlearning_adapters.errors import ConfigError

from .commands import SHAPEWORLD, Report, open_pipeline

NAME = "compare"


def compare_options(command: ArgumentParser) -> None:
    """Add the options of `unlearn compare`."""
    add = command.add_argument
    add("pipeline", metavar="PIPELINE", help="'shapeworld', a local folder or a Hub repository")
    add("concept", metavar="CONCEPT", help="a shipped concept, or a .yaml or .jsonl file")
    add("-o", "--output", metavar="DIR", required=True, help="folder; the same command goes on where it was stopped")
    add("--methods", type=_names, metavar="NAME,NAME", help=f"out of {', '.join(METHODS)} (default: all)")
    add("--esd", action="store_true", help="add ESD, which is trained: a costly reference")
    add(
        "--esd-set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="setting of ESD, such as steps=400; repeat it",
    )
    add("--gold", metavar="PIPELINE", help="add a pipeline that was trained without the concept")
    add("--suite", metavar="SUITE", help="a concept, or a .yaml, .jsonl or .csv file (default: the concept)")
    add("--detector", metavar="NAME", action="append", help="a name, or package.module:callable; repeat it for more")
    add("--clips", type=int, metavar="N", help="prompts of each set at most (default: all; ShapeWorld: 24)")
    add("--batch", type=int, default=1, metavar="N", help="clips per call of the pipeline (default: 1)")
    add("--gate", type=float, metavar="X", help="share of forget prompts that the base must show (default: 0.9 or 0.5)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="number type of the weights")
    add("--device", help="where to run, such as cuda (default: a GPU if there is one)")


def compare(options: Namespace) -> Report:
    """Build and measure all methods, and write compare.json, compare.md and compare.svg."""
    from unlearning_adapters.concepts.concept import load_concept

    concept = load_concept(options.concept)
    suite, esd = _suite(options, concept), _esd(options)
    from unlearning_adapters.evaluation.comparison.compare import COMPARED, compare_methods
    from unlearning_adapters.evaluation.comparison.table import to_plot, to_table
    from unlearning_adapters.evaluation.suites.shapeworld import suite_for

    folder = Path(options.output)
    pipe = open_pipeline(options.pipeline, options.dtype, options.device)
    suite = suite_for(suite, pipe)
    gold = None if options.gold is None else open_pipeline(options.gold, options.dtype, options.device)
    methods = COMPARED if options.methods is None else tuple(name for name in options.methods if name != "random")
    data, report = compare_methods(
        pipe,
        concept,
        suite,
        folder,
        methods,
        options.detector,
        esd=esd,
        gold=gold,
        gate=options.gate,
        batch_size=options.batch,
    )
    report.save(folder)
    text = to_table(data)
    files = [folder / f"{NAME}.{suffix}" for suffix in ("json", "md", "svg")]
    for file, content in zip(files, (_json(data), text, to_plot(data)), strict=True):
        file.write_text(content, encoding="utf-8")
    names = [str(file) for file in files]
    return Report({**data, "files": names}, "\n".join((text, *names)))


def _suite(options: Namespace, concept: Any) -> Any:
    """Return the suite of the concept, or of --suite, with at most --clips prompts per set."""
    from unlearning_adapters.evaluation.suites.file import read_suite
    from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite, values
    from unlearning_adapters.evaluation.suites.suite import Suite

    if options.clips is not None and options.clips < 1:
        raise ConfigError(f"Expected --clips to be at least 1, but got {options.clips}.")
    value = str(options.suite or concept.name).removeprefix(f"{SHAPEWORLD}-")
    if value in values():
        return shapeworld_suite(value, options.clips or 24)
    suite = Suite.from_concept(concept) if options.suite is None else read_suite(options.suite)
    return suite if options.clips is None else suite.limited(options.clips)


def _esd(options: Namespace) -> Any:
    """Return the settings of ESD; None if it is not asked for."""
    if not options.esd:
        if options.esd_set:
            raise ConfigError("--esd-set sets how ESD is trained, and there is no --esd. Add it.")
        return None
    from unlearning_adapters.evaluation.comparison.esd import EsdSettings

    kinds: dict[str, Any] = {name: type(value) for name, value in EsdSettings().to_dict().items()}
    given = dict(_setting(text) for text in options.esd_set)
    check_keys("--esd-set", given, set(kinds))
    found = {}
    for name, value in given.items():
        try:
            found[name] = kinds[name](value)
        except ValueError:
            raise ConfigError(f"Expected a number for `{name}` in --esd-set, but got {value!r}.") from None
    return EsdSettings(**found)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"Expected --esd-set as NAME=VALUE, such as steps=400, but got {text!r}.")
    return name.strip(), value.strip()


def _json(data: Any) -> str:
    import json

    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
