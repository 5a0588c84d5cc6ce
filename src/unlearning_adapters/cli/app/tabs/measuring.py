"""The tab Measure: an evaluation while it runs, its table, its contact sheet, and reports of before."""

import os
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job
from unlearning_adapters.cli.app.session import Entry, Session
from unlearning_adapters.cli.open import open_suite
from unlearning_adapters.cli.records.record import write_report_record
from unlearning_adapters.clips import Comparison, Strip, contact_sheet
from unlearning_adapters.errors import ConfigError, UnlearningError
from unlearning_adapters.evaluation.arms.record import read_record
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import as_detectors
from unlearning_adapters.evaluation.evaluate import default_detectors, evaluate, plan_arms, with_validity
from unlearning_adapters.evaluation.reports.gallery import draw
from unlearning_adapters.evaluation.reports.numbers import NOT_APPLICABLE, rate_of
from unlearning_adapters.evaluation.reports.page import PAGE, write_page
from unlearning_adapters.evaluation.reports.report import Report, make_report, read_report
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.evaluation.suites.worlds import find_value, suite_for

from .plain import eval_command

ROLES = (("forget", "paraphrase"), ("neighbour",))
SHOWN = 3  # prompts of a kind on the contact sheet
COLUMNS = (
    ("erased", "Erased", "higher is better"),
    ("concept_rate", "Concept shown", "lower is better"),
    ("preservation", "Neighbours right", "higher is better"),
    ("valid_rate", "Valid", ""),
)


class Measurement:
    """An evaluation of an adapter of the page, at a chosen size.

    Args:
        bench: The pipeline.
        session: The page.
        entry: What is measured.
        clips: Prompts of each set.
        detectors: Names of detectors; none takes the world's own judge.
        controls: Whether the controls run; without them the report is void.
    """

    def __init__(
        self, bench: Bench, session: Session, entry: Entry, clips: int, detectors: Sequence[str], controls: bool
    ) -> None:
        bench.check_takes_text()
        self.bench, self.session, self.entry, self.controls = bench, session, entry, controls
        self.command = eval_command(bench, entry, clips, detectors, controls)
        self.suite = suite_for(_suite(entry, clips), bench.pipe, **bench.call)
        chosen_detectors = as_detectors(list(detectors)) if detectors else default_detectors(self.suite)
        self.detectors = with_validity(chosen_detectors)
        self.folder = session.folder / "measurement"
        self.arms = plan_arms(entry.adapter, {}, controls)
        self.total = len(self.arms) * len(list(self.suite.cases()))

    def run(self, job: Job) -> Report:
        """Run it; nothing of it is left after a stop or an error."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            with self.bench.taken(job) as pipe:
                report = evaluate(
                    pipe, self.entry.adapter, self.suite, self.detectors, controls=self.controls, output=self.folder,
                    progress=False,
                )  # fmt: skip
            report.save(self.folder)
            write_page(report, self.folder)
            self.entry.report_folder = self._keep(report)
            self.entry.report = report
            return report
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _keep(self, report: Report) -> Path:
        """Copy what outlives the next measurement: the report, its page, and how to make it again."""
        folder = self.session.folder / "reports" / os.urandom(6).hex()
        try:
            folder.mkdir(parents=True)
            adapter = save_adapter(self.entry.adapter, folder)
            report.save(folder)
            shutil.copyfile(self.folder / PAGE, folder / PAGE)
            bench = self.bench
            write_report_record(folder, bench.pipe, bench.source, report, self.suite, adapter, command=self.command)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def made(self) -> int:
        """Number of clips so far."""
        return sum(len(path.read_bytes().splitlines()) for path in self.folder.glob("rows-*.jsonl"))

    def so_far(self) -> Report | None:
        """Return the report of what there is; None before the first clip."""
        try:
            record, rows = read_record(self.folder), Store(self.folder).rows()
            arms = {key[0] for key in rows}
            for name, arm in self.arms.items():
                if name in arms and name not in record["arms"]:
                    details = {"title": arm.title, "part": arm.part, "details": dict(arm.details)}
                    record["arms"][name] = {**details, "call": dict(arm.call), "cases": 0}
            return make_report(record, rows, self.suite, self.detectors) if "base" in arms else None
        except (UnlearningError, OSError):  # a line that is being written, or nothing yet
            return None


def _suite(entry: Entry, clips: int) -> Suite:
    name = entry.adapter.info.concept
    if entry.concept is not None and not find_value(name):
        return Suite.from_concept(entry.concept).limited(clips)
    suite: Suite = open_suite(name, clips)
    return suite


def table(report: Report | None) -> str:
    """Return the rates of all arms with 95 % intervals and counts, as HTML."""
    if report is None:
        return ""
    heads = "".join(f"<th scope='col'>{title}<small>{note or '&nbsp;'}</small></th>" for _, title, note in COLUMNS)
    rows = []
    for arm in report.data["arms"].values():
        cells = "".join(f"<td>{_cell(rate_of(arm, key))}</td>" for key, _, _ in COLUMNS)
        rows.append(f"<tr><th scope='row'>{escape(arm['title'])}</th>{cells}</tr>")
    return (
        f"<div class='ua-scroll'><table class='ua-rates'><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return NOT_APPLICABLE
    low, high = rate["interval"]
    return f"{rate['value']:.2f}<small>{low:.2f} to {high:.2f}, {rate['hits']} of {rate['count']}</small>"


def verdict(report: Report) -> str:
    """Return whether the report proves anything, in plain words, as HTML."""
    if report.status == "ok":
        lines = "".join(f"<li class='ua-doubt'>{escape(text)}</li>" for text in report.data["cautions"])
        tail = f"<ul class='ua-remarks'>{lines}</ul>" if lines else ""
        return f"<p class='ua-good'>The controls failed, as they must: the numbers count.</p>{tail}"
    reasons = "".join(f"<li class='ua-bad'>{escape(text)}</li>" for text in report.reasons)
    return f"<p class='ua-error'>Void: these numbers prove nothing.</p><ul class='ua-remarks'>{reasons}</ul>"


def sheet(report: Report, folder: Path) -> Any:
    """Return the contact sheet of a run, base over edited; None if its clips are not there or should be blurred."""
    if report.data["suite"]["sensitive"] or not (folder / "clips").is_dir():
        return None
    store = Store(folder)
    rows, columns = store.rows(), {}
    texts = {
        (part["name"], prompt["id"]): prompt["text"]
        for part in report.data["suite"]["sets"]
        for prompt in part["prompts"]
    }
    for roles, heading in zip(ROLES, ("Prompts that ask for it", "Neighbours, which must stay"), strict=True):
        samples = [sample for sample in report.data["samples"][report.edited] if sample["role"] in roles]
        shown = []
        for sample in draw(samples, SHOWN):
            strips = [
                Strip(label, store.load_clip(rows[(arm, *sample["key"])]))
                for arm, label in (("base", "original"), (report.edited, "edited"))
                if (arm, *sample["key"]) in rows
            ]
            shown.append(Comparison(texts[tuple(sample["key"][:2])], tuple(strips)))
        if shown:
            columns[heading] = shown
    return contact_sheet(columns, f"{report.data['concept']}: a random sample, not chosen by results")


def framed(page: Path) -> str:
    """Return a report's page, plots and all, in a frame that may load nothing."""
    text = page.read_text(encoding="utf-8")
    return f"<iframe class='ua-report' title='The report' sandbox='' srcdoc=\"{escape(text, quote=True)}\"></iframe>"


def opened(source: str, session: Session) -> tuple[Report, str]:
    """Return an earlier report and its page.

    Args:
        source: The folder of a run, or its report.json.
        session: The page, for the files.

    Raises:
        ConfigError: If nothing is named.
        EvaluationError: If there is no report.
    """
    if not source or not source.strip():
        raise ConfigError("No report is named. Give the folder of a run, or drop its report.json.")
    path = Path(source.strip()).expanduser()
    report = read_report(path)
    clips = path if path.is_dir() else path.parent
    return report, framed(write_page(report, session.folder / "opened", clips))
