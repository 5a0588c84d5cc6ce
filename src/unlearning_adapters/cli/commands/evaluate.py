"""`unlearn eval`: measure an adapter, compute a report anew, or compare two reports."""

from dataclasses import dataclass
from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline, open_suite
from unlearning_adapters.cli.records.record import write_report_record
from unlearning_adapters.cli.time_budget import option as budget_option
from unlearning_adapters.cli.time_budget import time_budget as limit
from unlearning_adapters.errors import ConfigError, EvaluationError

FORMS = "PIPELINE ADAPTER, or: diff REPORT REPORT, or nothing with --rescore"


@dataclass(frozen=True)
class EvalOptions:
    """What the command line says; each field is an argument or an option of `unlearn eval`."""

    subjects: tuple[str, ...]
    output: str | None
    suite: str | None
    detectors: tuple[str, ...]
    threshold: dict[str, float]
    clips: int | None
    seeds: tuple[int, ...] | None
    strength: Any
    strengths: tuple[float, ...]
    call: dict[str, Any]
    batch: int
    negative_prompt: str | None
    without_words: bool
    reseeded: bool
    rival: tuple[str, ...]
    fused: bool
    controls: bool
    gate: float | None
    features: str | None
    rescore: str | None
    fail_under: dict[str, float]
    time_budget: float | None
    dtype: str | None
    device: str | None


@command("eval", "measure what an adapter removes and what it keeps")
@click.argument(
    "subjects",
    metavar="[PIPELINE ADAPTER]",
    nargs=-1,
    help=f"{FORMS}; PIPELINE is {options.PIPELINES}; a report is a run's folder or its JSON file",
)
@options.output("DIR", "folder of the run; the same command goes on where it was stopped", required=False)
@options.suite("the adapter's concept")
@options.detectors
@options.name_values("--threshold", "threshold of a detector; repeat it", float, "nudenet=0.5", kind="NUMBER")
@options.clips
@click.option(
    "--seeds", type=options.listed(int, "0,1"), metavar="N,N", help="seeds of each prompt (default: one of its own)"
)
@options.strength("strength of the adapter (default: its own)")
@click.option(
    "--strengths",
    type=options.listed(float, "0.5,1"),
    metavar="X,X",
    default=(),
    help="further strengths, for the plot",
)
@options.call_arguments
@options.batch()
@click.option("--negative-prompt", metavar="TEXT", help="add an arm: the base with this negative prompt")
@click.option("--without-words", is_flag=True, help="add an arm: the base, the concept's words left out of prompts")
@click.option("--reseeded", is_flag=True, help="add an arm: the base with other noise, the scale for all drift")
@click.option("--rival", metavar="ADAPTER", multiple=True, help="add an arm with another adapter; repeat it")
@click.option("--fused", is_flag=True, help="write the adapter into the weights for its arm")
@click.option(
    "--no-controls",
    "controls",
    is_flag=True,
    flag_value=False,
    default=True,
    help="run no controls; the report is then void",
)
@options.gate
@click.option(
    "--features", metavar="NAME", help="take Frechet and kernel distances: 'random', or package.module:callable"
)
@click.option("--rescore", metavar="DIR", help="compute the report of a run anew; nothing is generated")
@options.name_values(
    "--fail-under", "exit with 1 if erase, preserve, ... is below; repeat it", float, "erase=0.8", kind="NUMBER"
)
@budget_option
@options.placement
def evaluate(**values: Any) -> CommandResult:
    """Run the form of the command that the options ask for."""
    from unlearning_adapters.evaluation.reports.diff import check_thresholds

    request = EvalOptions(**values)
    check_thresholds(request.fail_under)
    if request.rescore is not None:
        if request.subjects:
            raise ConfigError(f"--rescore takes no further subjects, but got {' '.join(request.subjects)}.")
        return _rescore(request, request.rescore)
    if request.subjects[:1] == ("diff",):
        return _diff(request)
    if len(request.subjects) != 2:
        raise ConfigError(f"Expected {FORMS}; but got {' '.join(request.subjects) or 'nothing'}.")
    if not request.output:
        raise ConfigError("Expected a folder for the run: give -o DIR. The same folder again goes on with the run.")
    return _evaluate(request, request.output)


def _evaluate(request: EvalOptions, folder: str) -> CommandResult:
    from unlearning_adapters.adapter.adapter import load_adapter
    from unlearning_adapters.runtime.components import at_strength

    source, adapter = request.subjects[0], at_strength(load_adapter(request.subjects[1]), request.strength)
    suite = open_suite(request.suite or adapter.info.concept, request.clips)
    from unlearning_adapters.adapter.source import find_adapter_file
    from unlearning_adapters.evaluation.arms.processes import this_process
    from unlearning_adapters.evaluation.evaluate import evaluate, rescore
    from unlearning_adapters.evaluation.suites.worlds import suite_for

    process = this_process(cpu=_on_cpu(request.device))
    device = request.device
    if process.count > 1 and device in (None, "cuda") and not _on_cpu(device):
        device = f"cuda:{process.local}"
    pipe = open_pipeline(source, request.dtype, device)
    suite = suite_for(suite, pipe, **request.call)
    report = None
    with limit(request.time_budget):
        report = evaluate(
            pipe,
            adapter,
            suite,
            list(request.detectors) or None,
            request.seeds,
            arms=_further_arms(request, suite),
            controls=request.controls,
            fused=request.fused,
            strengths=request.strengths,
            gate=request.gate,
            features=_features(request.features),
            output=folder,
            process=process,
            batch_size=request.batch,
        )
    if report is None:
        text = f"{folder}: the time is over, and the run is not; the same command goes on with it"
        return CommandResult({"folder": folder, "unfinished": True}, text)
    if not process.main:
        return CommandResult({}, "")
    if request.threshold:
        report = rescore(folder, thresholds=request.threshold, progress=False)
    file = find_adapter_file(request.subjects[1])
    write_report_record(folder, pipe, source, report, suite, file, seeds=request.seeds)
    return _written(report, folder, request.fail_under)


def _further_arms(request: EvalOptions, suite: Any) -> dict[str, Any]:
    from unlearning_adapters.evaluation.arms.arm import adapter_arm, negative_prompt_arm, reseeded_arm, reworded_arm

    arms = {f"rival-{index}": adapter_arm(source, part="reference") for index, source in enumerate(request.rival, 1)}
    if request.negative_prompt:
        arms["negative-prompt"] = negative_prompt_arm(request.negative_prompt)
    if request.reseeded:
        arms["reseeded"] = reseeded_arm()
    if request.without_words:
        arms["without-words"] = reworded_arm(suite.words)
    return arms


def _rescore(request: EvalOptions, folder: str) -> CommandResult:
    from unlearning_adapters.evaluation.evaluate import rescore

    detectors = list(request.detectors) or None
    report = rescore(folder, detectors, request.threshold, request.gate, _features(request.features))
    return _written(report, request.output or folder, request.fail_under)


def _diff(request: EvalOptions) -> CommandResult:
    from unlearning_adapters.evaluation.reports.diff import diff_reports, failures
    from unlearning_adapters.evaluation.reports.report import read_report

    if len(request.subjects) != 3:
        raise ConfigError(f"Expected two reports, `unlearn eval diff A B`, but got {len(request.subjects) - 1}.")
    before, after = (read_report(source) for source in request.subjects[1:])
    difference = diff_reports(before, after)
    reasons = failures(after, request.fail_under) if request.fail_under else []
    return CommandResult(
        {**difference.to_dict(), "failures": reasons}, difference.to_text(), failure="; ".join(reasons)
    )


def _written(report: Any, folder: str, thresholds: dict[str, float]) -> CommandResult:
    """Write the report in all its forms, and return it with its failures."""
    from unlearning_adapters.evaluation.reports.diff import failures
    from unlearning_adapters.evaluation.reports.markdown import to_markdown
    from unlearning_adapters.evaluation.reports.page import write_page

    path = report.save(folder)
    text = to_markdown(report.data)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    page = write_page(report, folder)
    reasons = failures(report, thresholds) if thresholds else []
    files = [str(file) for file in (path, path.with_suffix(".md"), page)]
    data = {**{name: value for name, value in report.data.items() if name not in ("samples", "suite")}, "files": files}
    return CommandResult({**data, "failures": reasons}, "\n".join((text, *files)), failure="; ".join(reasons))


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


def _on_cpu(device: str | None) -> bool:
    import torch

    return device.startswith("cpu") if device else not torch.cuda.is_available()
