"""The command `unlearn eval`: measure an adapter, compute a report anew, or compare two reports."""

from argparse import ArgumentParser, Namespace
from typing import Any

from unlearning_adapters.errors import ConfigError, EvaluationError

from .commands import SHAPEWORLD, Report, open_pipeline, read_call

FORMS = "PIPELINE ADAPTER, or: diff REPORT REPORT, or nothing with --rescore"


def eval_options(command: ArgumentParser) -> None:
    """Add the options of `unlearn eval`."""
    add = command.add_argument
    add("subjects", metavar="PIPELINE ADAPTER", nargs="*", help=f"{FORMS}; a report is a run's folder or its JSON file")
    add("-o", "--output", metavar="DIR", help="folder of the run; the same command goes on where it was stopped")
    add(
        "--suite",
        metavar="SUITE",
        help="a concept, or a .yaml, .jsonl or .csv file, or LOADER:FILE (default: the adapter's concept)",
    )
    add("--detector", metavar="NAME", action="append", help="a name, or package.module:callable; repeat it for more")
    add("--threshold", metavar="NAME=X", action="append", default=[], help="threshold of a detector; repeat it")
    add("--clips", type=int, metavar="N", help="prompts of each set at most (default: all; ShapeWorld: 24)")
    add("--seeds", type=_whole_numbers, metavar="N,N", help="seeds of each prompt (default: one of its own)")
    add("--strengths", type=_numbers, metavar="X,X", default=(), help="further strengths, for the plot")
    add("--call", metavar="NAME=VALUE", action="append", default=[], help="argument of the pipeline's call; repeat it")
    add("--batch", type=int, default=1, metavar="N", help="clips per call of the pipeline (default: 1)")
    add("--negative-prompt", metavar="TEXT", help="add an arm: the base with this negative prompt")
    add("--without-words", action="store_true", help="add an arm: the base, the concept's words left out of prompts")
    add("--reseeded", action="store_true", help="add an arm: the base with other noise, the scale for all drift")
    add("--rival", metavar="ADAPTER", action="append", default=[], help="add an arm with another adapter; repeat it")
    add("--fused", action="store_true", help="write the adapter into the weights for its arm")
    add("--no-controls", dest="controls", action="store_false", help="run no controls; the report is then void")
    add("--gate", type=float, metavar="X", help="share of forget prompts that the base must show (default: 0.9 or 0.5)")
    add("--features", metavar="NAME", help="take Frechet and kernel distances: 'random', or package.module:callable")
    add("--rescore", metavar="DIR", help="compute the report of a run anew; nothing is generated")
    add(
        "--fail-under",
        metavar="NAME=X",
        action="append",
        help="exit with 1 if erase, preserve, ... is below; repeat it",
    )
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="number type of the weights")
    add("--device", help="where to run, such as cuda (default: a GPU if there is one)")


def run_eval(options: Namespace) -> Report:
    """Run the form of the command that the options ask for."""
    from unlearning_adapters.evaluation.reports.diff import read_thresholds

    wanted = None if options.fail_under is None else read_thresholds(options.fail_under)
    if options.rescore is not None:
        if options.subjects:
            raise ConfigError(f"--rescore takes no further subjects, but got {' '.join(options.subjects)}.")
        return _rescore(options, wanted)
    if options.subjects[:1] == ["diff"]:
        return _diff(options, wanted)
    if len(options.subjects) != 2:
        raise ConfigError(f"Expected {FORMS}; but got {' '.join(options.subjects) or 'nothing'}.")
    if not options.output:
        raise ConfigError("Expected a folder for the run: give -o DIR. The same folder again goes on with the run.")
    return _evaluate(options, wanted)


def _evaluate(options: Namespace, wanted: dict[str, float] | None) -> Report:
    from unlearning_adapters.adapter.adapter import load_adapter

    source, adapter = options.subjects[0], load_adapter(options.subjects[1])
    suite, call = _suite(options, adapter), read_call(options.call)
    from unlearning_adapters.evaluation.arms.processes import this_process
    from unlearning_adapters.evaluation.evaluate import evaluate, rescore
    from unlearning_adapters.evaluation.suites.shapeworld import suite_for

    process = this_process(cpu=_on_cpu(options.device))
    device = options.device
    if process.count > 1 and device in (None, "cuda") and not _on_cpu(device):
        device = f"cuda:{process.local}"
    pipe = open_pipeline(source, options.dtype, device)
    suite = suite_for(suite, pipe, **call)
    report = evaluate(
        pipe,
        adapter,
        suite,
        options.detector,
        options.seeds,
        arms=_further_arms(options, suite),
        controls=options.controls,
        fused=options.fused,
        strengths=options.strengths,
        gate=options.gate,
        features=_features(options.features),
        output=options.output,
        process=process,
        batch_size=options.batch,
    )
    if not process.main:
        return Report({}, "")
    if options.threshold:
        report = rescore(options.output, thresholds=_pairs(options.threshold, "--threshold"), progress=False)
    return _written(report, options.output, wanted)


def _suite(options: Namespace, adapter: Any) -> Any:
    """Return the suite of the size that the options ask for."""
    from unlearning_adapters.evaluation.suites.file import read_suite
    from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite, values

    name = str(options.suite or adapter.info.concept)
    value = name.removeprefix(f"{SHAPEWORLD}-")
    if options.clips is not None and options.clips < 1:
        raise EvaluationError(f"Expected --clips to be at least 1, but got {options.clips}.")
    if value in values():
        return shapeworld_suite(value, options.clips or 24)
    suite = read_suite(name)
    return suite if options.clips is None else suite.limited(options.clips)


def _further_arms(options: Namespace, suite: Any) -> dict[str, Any]:
    from unlearning_adapters.evaluation.arms.arm import adapter_arm, negative_prompt_arm, reseeded_arm, reworded_arm

    arms = {f"rival-{index}": adapter_arm(source, part="reference") for index, source in enumerate(options.rival, 1)}
    if options.negative_prompt:
        arms["negative-prompt"] = negative_prompt_arm(options.negative_prompt)
    if options.reseeded:
        arms["reseeded"] = reseeded_arm()
    if options.without_words:
        arms["without-words"] = reworded_arm(suite.words)
    return arms


def _rescore(options: Namespace, wanted: dict[str, float] | None) -> Report:
    from unlearning_adapters.evaluation.evaluate import rescore

    thresholds = _pairs(options.threshold, "--threshold")
    report = rescore(options.rescore, options.detector, thresholds, options.gate, _features(options.features))
    return _written(report, options.output or options.rescore, wanted)


def _diff(options: Namespace, wanted: dict[str, float] | None) -> Report:
    from unlearning_adapters.evaluation.reports.diff import diff_reports, failures
    from unlearning_adapters.evaluation.reports.report import read_report

    if len(options.subjects) != 3:
        raise ConfigError(f"Expected two reports, `unlearn eval diff A B`, but got {len(options.subjects) - 1}.")
    before, after = (read_report(source) for source in options.subjects[1:])
    found = diff_reports(before, after)
    failed = [] if wanted is None else failures(after, wanted)
    return Report({**found.to_dict(), "failures": failed}, found.to_text(), failure="; ".join(failed))


def _written(report: Any, folder: str, wanted: dict[str, float] | None) -> Report:
    """Write the report in all its forms, and return it with its failures."""
    from unlearning_adapters.evaluation.reports.diff import failures
    from unlearning_adapters.evaluation.reports.markdown import to_markdown
    from unlearning_adapters.evaluation.reports.page import write_page

    path = report.save(folder)
    text = to_markdown(report.data)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    page = write_page(report, folder)
    failed = [] if wanted is None else failures(report, wanted)
    files = [str(file) for file in (path, path.with_suffix(".md"), page)]
    data = {**{name: value for name, value in report.data.items() if name not in ("samples", "suite")}, "files": files}
    return Report({**data, "failures": failed}, "\n".join((text, *files)), failure="; ".join(failed))


def _features(name: str | None) -> Any:
    """Return the network of the distances: "random", or what a module holds."""
    if name is None or name == "random":
        return name
    from importlib import import_module

    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EvaluationError(f"Cannot load --features {name!r}: {error}. Give package.module:callable.") from error


def _pairs(texts: list[str], option: str) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise EvaluationError(f"Expected {option} as NAME=NUMBER, but got {text!r}.") from None
    return found


def _on_cpu(device: str | None) -> bool:
    import torch

    return device.startswith("cpu") if device else not torch.cuda.is_available()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
