"""Widgets that several tabs share: the progress of a job, and a row for each adapter with its switch and its dial."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.errors import ConfigError

from .jobs import Job, one_line
from .session import MOST, Entry, Session, Sessions

LOOK_EVERY = 0.25  # seconds
STEEPEST = 2.0  # end of the dial


def session_of(sessions: Sessions, request: gr.Request) -> Session:
    """Return the open page that a request comes from."""
    return sessions.of(str(request.session_hash))


def failed(error: object) -> str:
    """Return an error as one line of HTML."""
    text = one_line(error) if isinstance(error, BaseException) else str(error)
    return f"<p class='ua-error' role='alert'>{escape(text)}</p>"


def progress(job: Job) -> str:
    """Return how far a job is, as HTML."""
    steps = f", {job.steps} steps of the model" if job.steps else ""
    return f"<p class='ua-note' role='status'>{escape(job.waits or job.text + steps)} ...</p>"


def follow(
    session: Session,
    start: Callable[[], tuple[Callable[[Job], Any], str]],
    blank: Sequence[Any],
    show: Callable[[Any], Sequence[Any]],
    live: Callable[[Job], Sequence[Any]] | None = None,
    over: str = "",
) -> Iterator[tuple[Any, ...]]:
    """Run a job, and yield the outputs of its event: first a line of HTML, then the others.

    Args:
        session: The page.
        start: Function that checks the inputs and returns the work and its text.
        blank: The other outputs while there is nothing to show.
        show: Function from the job's result to all outputs.
        live: Function from the job to all outputs while it runs; None shows its steps.
        over: As for `Session.start`.
    """
    try:
        job = session.start(*start(), over)
    except Exception as error:  # one line on the page, whatever it is
        yield failed(error), *blank
        return
    try:
        while not job.wait(LOOK_EVERY):
            yield tuple(live(job)) if live else (progress(job), *blank)
    finally:
        job.stop()  # the page is closed, or the job is over
    if job.replaced:
        yield "", *blank
    elif job.error:
        yield failed(job.error), *blank
    elif job.stopped:
        yield "<p class='ua-note' role='status'>Stopped. Nothing of it is left.</p>", *blank
    else:
        yield tuple(show(job.result))


def stop_button(sessions: Sessions) -> gr.Button:
    """Return a button that ends the job of its page."""
    button = gr.Button("Stop", variant="stop", scale=0, min_width=90)

    def stop(request: gr.Request) -> None:
        session_of(sessions, request).stop()

    button.click(stop, queue=False, show_progress="hidden")
    return button


class Rows:
    """The adapters of a page: a switch, a dial and a button for each, and their names in the other tabs."""

    def __init__(self, sessions: Sessions, local: bool = True) -> None:
        self.sessions, self.local = sessions, local
        self.names: list[gr.Dropdown] = []
        self.lines: list[gr.Row] = []
        self.switches: list[gr.Checkbox] = []
        self.dials: list[gr.Slider] = []
        self.removers: list[gr.Button] = []

    def draw(self) -> None:
        """Draw the rows, and what opens a file."""
        self.empty = gr.HTML("<p class='ua-note'>No adapter yet: build one in the tab Forget, or open a file.</p>")
        for number in range(1, MOST + 1):
            with gr.Row(visible=False, equal_height=True, elem_classes="ua-row") as line:
                self.switches.append(gr.Checkbox(True, label=f"adapter {number}", scale=2, min_width=150))
                self.dials.append(
                    gr.Slider(0, STEEPEST, 1, step=0.05, label=f"Strength of adapter {number}", scale=4, min_width=180)
                )
                self.removers.append(gr.Button("Take off", size="sm", scale=0, min_width=90))
            self.lines.append(line)
        with gr.Accordion("Open an adapter file", open=False, visible=self.local):
            self.file = gr.Textbox(label="File, folder or Hub repository", placeholder="no-red")
            self.open = gr.Button("Open", size="sm")
            self.opened = gr.HTML()

    @property
    def outputs(self) -> list[Any]:
        """All widgets that follow the adapters of a page."""
        return [self.empty, *self.lines, *self.switches, *self.dials, *self.names]

    def connect(self, page: gr.Blocks, built: Any) -> None:
        """Let the rows follow the builds, the files that are opened, and the buttons."""
        state = [*self.switches, *self.dials]

        def begin(request: gr.Request) -> list[Any]:
            session = session_of(self.sessions, request)
            return self.refreshed(session, [], [])

        def grown(request: gr.Request, *values: Any) -> list[Any]:
            return self.refreshed(session_of(self.sessions, request), values[:MOST], values[MOST:])

        def open_file(request: gr.Request, source: str, *values: Any) -> list[Any]:
            session = session_of(self.sessions, request)
            try:
                if not self.local:  # hidden widgets can still be called
                    raise ConfigError("This page opens no files. Install the package, and run `unlearn app`.")
                name = session.add(Entry(load_adapter(source.strip())))
                message = f"<p class='ua-good'>{escape(name)} is open.</p>"
            except Exception as error:
                message = failed(error)
            return [message, *self.refreshed(session, values[:MOST], values[MOST:])]

        page.load(begin, outputs=self.outputs, show_progress="hidden")
        built.change(grown, state, self.outputs, show_progress="hidden")
        self.open.click(open_file, [self.file, *state], [self.opened, *self.outputs], show_progress="hidden")
        for index, button in enumerate(self.removers):
            button.click(self._remover(index), state, self.outputs, show_progress="hidden")

    def _remover(self, index: int) -> Callable[..., list[Any]]:
        def remove(request: gr.Request, *values: Any) -> list[Any]:
            session = session_of(self.sessions, request)
            names = list(session.entries)
            switches, dials = list(values[:MOST]), list(values[MOST:])
            if index < len(names):
                del session.entries[names[index]], switches[index], dials[index]
            return self.refreshed(session, switches, dials)

        return remove

    def refreshed(self, session: Session, switches: Sequence[bool], dials: Sequence[float]) -> list[Any]:
        """Return updates of all widgets; adapters that the page knew keep their switches and dials."""
        before, names = session.shown, list(session.entries)
        shown, on, strength = [], [], []
        for place in range(MOST):
            there = place < len(names)
            old = there and place < min(before, len(switches))
            own = min(session.entries[names[place]].adapter.strength, STEEPEST) if there else 1.0
            shown.append(gr.update(visible=there))
            on.append(gr.update(label=names[place] if there else "", value=switches[place] if old else True))
            strength.append(
                gr.update(
                    label=f"Strength of {names[place]}" if there else "",
                    value=dials[place] if old else round(own / 0.05) * 0.05,
                )
            )
        session.shown = len(names)
        last = names[-1] if names else None
        return [
            gr.update(visible=not names), *shown, *on, *strength,
            *(gr.update(choices=names, value=last) for _ in self.names),
        ]  # fmt: skip
