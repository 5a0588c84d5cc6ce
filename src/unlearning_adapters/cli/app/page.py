"""The page: four tabs of widgets, whose work is done by functions of the other files of this folder."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from unlearning_adapters.config import METHODS
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.detectors.detector import BUILT_IN
from unlearning_adapters.evaluation.reports.page import PAGE

from .bench import Bench
from .jobs import Job
from .looks import FIRST_PROMPT, FIRST_PROMPTS, OWN_PAIRS, OWN_WORDS, look, opening
from .session import MOST, Sessions
from .tabs.comparing import compare, compare_grid, edits_of
from .tabs.forgetting import build, chosen_concept, concept_names, description, remarks
from .tabs.measuring import Measurement, framed, opened, sheet, table, verdict
from .tabs.sharing import card, engine_names, files_of, for_engine, push
from .widgets import Rows, failed, follow, progress, session_of, stop_button

OWN, FILE, CLIPS = "own", "file", "Making two clips"
PAIRS = {True: 5, False: 10}  # whether the pipeline is of the embedded world
SIZES = [1, 2, 4, 8, 16, 24]
BARE = {"show_progress": "hidden"}


def make_page(bench: Bench, sessions: Sessions, local: bool = True) -> Any:
    """Return the page, which `serve` serves.

    Args:
        bench: The pipeline.
        sessions: What the open pages have.
        local: Whether readers sit at this machine: strangers open no files of it, name no detectors and push nothing.
    """

    def close(request: gr.Request) -> None:
        sessions.close(str(request.session_hash))

    with gr.Blocks(title="unlearning-adapters", analytics_enabled=False) as page:
        gr.HTML(opening(bench.source, type(bench.pipe).__name__, local))
        rows = Rows(sessions, local)
        with gr.Tabs():
            with gr.Tab("Forget"):
                built = _forget(bench, sessions)
            with gr.Tab("Compare"):
                _compare(bench, sessions, rows)
            with gr.Tab("Measure"):
                rows.names.append(_measure(bench, sessions, local))
            with gr.Tab("Share"):
                rows.names.append(_share(bench, sessions, local))
        rows.connect(page, built)
        page.unload(close)
    page.queue(default_concurrency_limit=None)
    page.unlearning_look = look()
    return page


def _forget(bench: Bench, sessions: Sessions) -> Any:
    """Draw the tab; return the widget that changes when an adapter was built."""
    names = concept_names(bench.embedded)
    first = next((name for name in names if bench.embedded and name.endswith("red")), names[0])
    choices = [("my own pairs", OWN), ("a file of mine", FILE), *((name, f"shipped:{name}") for name in names)]
    source = gr.Dropdown(choices, value=f"shipped:{first}", label="What to forget")
    file = gr.File(label="Concept file (.yaml or .jsonl)", visible=False, height=140)
    typed = _own_pairs(bench, source, file)
    with gr.Accordion("Settings", open=False), gr.Row():
        scope = gr.Radio(["word", "concept"], value="word", label="Scope")
        method = gr.Dropdown(list(METHODS), value="ridge", label="Method")
        strength = gr.Textbox("", label="Strength", placeholder="calibrated on the pairs")
    with gr.Row():
        start = gr.Button("Build", variant="primary", min_width=120)
        stop_button(sessions)
    status = gr.HTML()
    built = gr.Number(0, visible=False)

    def run(request: gr.Request, chosen: str, path: str | None, *given: Any) -> Iterator[tuple[Any, ...]]:
        session = session_of(sessions, request)

        def begin() -> tuple[Any, str]:
            concept = chosen_concept(chosen, path, given[:4], bench.embedded)
            settings: dict[str, Any] = {"scope": given[4], "method": given[5]}
            settings["pairs"] = min(PAIRS[bench.embedded], len(concept.pairs))
            if given[6].strip():
                settings["strength"] = number(given[6], "the strength")
            return lambda job: build(bench, session, concept, settings, job), f"Building {concept.name}"

        yield from follow(session, begin, [gr.skip()], lambda made: (description(made), session.built))

    start.click(run, [source, file, *typed, scope, method, strength], [status, built], **BARE)
    return built


def _own_pairs(bench: Bench, source: gr.Dropdown, file: gr.File) -> list[Any]:
    """Draw the form for own pairs, whose lint follows the typing; return its fields."""
    with gr.Column(visible=False) as own:
        with gr.Row():
            name = gr.Textbox("no-crimson", label="Name")
            words = gr.Textbox(OWN_WORDS, label="Its words, separated by commas")
        pairs = gr.Textbox(OWN_PAIRS, label="Pairs, one on each line: with it | without it", lines=5)
        neutral = gr.Textbox("", label="Prompts that must not change, one on each line (empty: a shared set)", lines=2)
        remarks_box = gr.HTML()
    typed = [name, words, pairs, neutral]

    def switch(chosen: str, *texts: str) -> list[Any]:
        return [gr.update(visible=chosen == FILE), gr.update(visible=chosen == OWN), lint(*texts)]

    def lint(*texts: str) -> str:
        return remarks(texts, bench.embedded)

    source.change(switch, [source, *typed], [file, own, remarks_box], **BARE)
    for box in typed:
        box.change(lint, typed, remarks_box, trigger_mode="always_last", **BARE)
    return typed


def _compare(bench: Bench, sessions: Sessions, rows: Rows) -> None:
    with gr.Row():
        prompt = gr.Textbox(FIRST_PROMPT if bench.embedded else "", label="Prompt", scale=5, min_width=240)
        seed = gr.Number(0, label="Seed, the same for all", precision=0, scale=1, min_width=110)
    rows.draw()
    with gr.Row():
        start = gr.Button("Compare", variant="primary", min_width=120)
        stop_button(sessions)
    status, player = gr.HTML(), gr.HTML()
    with gr.Accordion("Grid of strengths and prompts", open=False):
        prompts = gr.Textbox(FIRST_PROMPTS if bench.embedded else "", label="Prompts, one on each line", lines=3)
        many = gr.Button("Make the grid", size="sm")
        grid_status, grid = gr.HTML(), gr.HTML()

    def run(request: gr.Request, text: str, number_: float, *values: Any) -> Iterator[tuple[Any, ...]]:
        session = session_of(sessions, request)

        def begin() -> tuple[Any, str]:
            edits = edits_of(session, values[:MOST], values[MOST:])
            return lambda job: compare(bench, session, text, int(number_ or 0), edits, job), CLIPS

        yield from follow(session, begin, [gr.skip()], _compared, over=CLIPS)

    def run_grid(request: gr.Request, texts: str, number_: float, *values: Any) -> Iterator[tuple[Any, ...]]:
        session = session_of(sessions, request)

        def begin() -> tuple[Any, str]:
            edits = edits_of(session, values[:MOST], values[MOST:])
            return lambda job: compare_grid(bench, session, texts, int(number_ or 0), edits, job), "Making the grid"

        yield from follow(session, begin, [gr.skip()], _compared, over=CLIPS)

    state = [*rows.switches, *rows.dials]
    click = [run, [prompt, seed, *state], [status, player]]
    start.click(*click, **BARE)
    prompt.submit(*click, **BARE)
    for dial in rows.dials:
        dial.release(*click, trigger_mode="always_last", **BARE)
    many.click(run_grid, [prompts, seed, *state], [grid_status, grid], **BARE)


def _compared(made: dict[str, Any]) -> tuple[str, str]:
    warned = "".join(failed(text) for text in made.get("warnings", ()))
    return f"{warned}<p class='ua-note' role='status'>{made['seconds']:.1f} s</p>", made["html"]


def _measure(bench: Bench, sessions: Sessions, local: bool) -> gr.Dropdown:
    """Draw the tab; return the widget that names the adapters."""
    with gr.Row():
        name = gr.Dropdown([], label="Adapter", min_width=220)
        size = gr.Dropdown(SIZES, value=4, label="Prompts of each kind")
        detectors = gr.Dropdown(
            list(BUILT_IN), value=[], multiselect=True, label="Detectors (none: the judge of ShapeWorld)", visible=local
        )
    controls = gr.Checkbox(True, label="run the controls; without them a report proves nothing")
    with gr.Row():
        start = gr.Button("Measure", variant="primary", min_width=120)
        stop_button(sessions)
    status, rates = gr.HTML(), gr.HTML()
    picture = gr.Image(
        label="Contact sheet", show_label=False, visible=False, interactive=False, buttons=["download", "fullscreen"]
    )
    with gr.Accordion("The report, with all plots", open=False):
        report = gr.HTML("<p class='ua-note'>Nothing was measured or opened yet.</p>")
    with gr.Accordion("Open an earlier report", open=False, visible=local):
        path = gr.Textbox(label="Folder of the run, or its report.json", placeholder="report")
        look_at = gr.Button("Open", size="sm")
    outputs = [status, rates, picture, report]

    def run(request: gr.Request, chosen: str, count: int, names: list[str], controlled: bool) -> Iterator[Any]:
        session, jobs = session_of(sessions, request), list[Measurement]()

        def begin() -> tuple[Any, str]:
            entry = session.entry(chosen)
            detector_names = list(names or []) if local else []
            jobs.append(Measurement(bench, session, entry, min(int(count), max(SIZES)), detector_names, controlled))
            return jobs[0].run, f"Measuring {chosen}"

        def live(job: Job) -> tuple[Any, ...]:
            made = jobs[0].made()
            text = f"<p class='ua-note' role='status'>{made} of about {jobs[0].total} clips ...</p>"
            return text if made else progress(job), table(jobs[0].so_far()), gr.skip(), gr.skip()

        yield from follow(session, begin, [gr.skip()] * 3, lambda made: _measured(made, jobs[0].folder), live)

    def open_report(request: gr.Request, source: str) -> tuple[Any, ...]:
        try:
            check_local(local)
            made, page = opened(source, session_of(sessions, request))
        except Exception as error:  # one line on the page, whatever it is
            return failed(error), gr.skip(), gr.skip(), gr.skip()
        return verdict(made), table(made), gr.update(visible=False), page

    start.click(run, [name, size, detectors, controls], outputs, **BARE)
    look_at.click(open_report, path, outputs, **BARE)
    return name


def _measured(report: Any, folder: Any) -> tuple[Any, ...]:
    picture = sheet(report, folder)
    shown = gr.update(value=picture, visible=picture is not None)
    return verdict(report), table(report), shown, framed(folder / PAGE)


def _share(bench: Bench, sessions: Sessions, local: bool) -> gr.Dropdown:
    """Draw the tab; return the widget that names the adapters."""
    with gr.Row():
        name = gr.Dropdown([], label="Adapter", min_width=220)
        repository = gr.Textbox("", label="Repository on the Hub", placeholder="org/name")
    with gr.Row():
        show = gr.Button("Show the card and the files", min_width=200)
        engine = gr.Dropdown(engine_names(), value="diffusers", label="Engine", min_width=200)
        export = gr.Button("Export for it", min_width=140)
    message = gr.HTML()
    files = gr.File(label="Files", file_count="multiple", interactive=False, visible=False)
    line = gr.Code(
        label="How to load it there", language=None, interactive=False, visible=False, wrap_lines=True, lines=1
    )
    with gr.Accordion("Push to the Hub", open=False, visible=local):
        token = gr.Textbox("", label="Access token (empty: that of `hf auth login`)", type="password")
        private = gr.Checkbox(False, label="private")
        send = gr.Button("Push", variant="primary")
        pushed = gr.HTML()
    with gr.Accordion("Card", open=True):
        body = gr.Markdown("The card will look like this.", sanitize_html=True)
        with gr.Accordion("Front matter", open=False):
            front = gr.Code(language="yaml", interactive=False, max_lines=24)

    def card_of(request: gr.Request, chosen: str, where: str) -> tuple[Any, ...]:
        session = session_of(sessions, request)
        try:
            entry = session.entry(chosen)
            matter, text = card(entry, where)
            paths = [str(path) for path in files_of(bench, entry, session, chosen)]
        except Exception as error:  # one line on the page, whatever it is
            return failed(error), gr.skip(), gr.skip(), gr.skip()
        return "", gr.update(value=paths, visible=True), matter, text

    def export_for(request: gr.Request, chosen: str, program: str) -> tuple[Any, ...]:
        session = session_of(sessions, request)
        try:
            files, text = for_engine(session.entry(chosen), session, program)
        except Exception as error:
            return failed(error), gr.skip(), gr.skip()
        paths = [str(path) for path in files]
        return "", gr.update(value=paths, visible=True), gr.update(value=text, visible=True)

    def push_it(request: gr.Request, chosen: str, where: str, secret: str, closed: bool) -> tuple[str, str]:
        try:
            check_local(local)
            url = push(session_of(sessions, request).entry(chosen), where, secret, closed)
            return f"<p class='ua-good' role='status'>Pushed: {url}</p>", ""
        except Exception as error:
            return failed(str(error).replace(secret, "***") if secret else error), ""

    show.click(card_of, [name, repository], [message, files, front, body], **BARE)
    export.click(export_for, [name, engine], [message, files, line], **BARE)
    send.click(push_it, [name, repository, token, private], [pushed, token], **BARE)
    return name


def check_local(local: bool) -> None:
    """Raise `ConfigError` on the page of a Space, whose hidden widgets can still be called."""
    if not local:
        raise ConfigError("This page opens no files and pushes nothing. Install the package, and run `unlearn app`.")


def number(text: str, what: str) -> float:
    """Read a number that somebody typed.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"Expected {what} to be a number, but got {text!r}.") from None
