"""`unlearn app`: the page."""

from typing import Any

import click

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import SHAPEWORLD, open_pipeline, opened


@command("app", "open a page on this machine: forget, compare, measure, share")
@click.argument(
    "pipeline", default=SHAPEWORLD, metavar="[PIPELINE]", help="as for build (default: shapeworld, which is embedded)"
)
@click.option("--adapter", "adapters", multiple=True, metavar="ADAPTER", help="an adapter to start with; repeat it")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="port (default: the first free from 7860 on)")
@click.option("--browser/--no-browser", default=True, help="open a browser (default: yes)")
@click.option("--space", metavar="DIR", help="write a Space of the page for the Hub, and open nothing")
@options.call_arguments
@options.placement
def app(
    pipeline: str,
    adapters: tuple[str, ...],
    port: int | None,
    browser: bool,
    space: str | None,
    call: dict[str, Any],
    dtype: str | None,
    device: str | None,
) -> CommandResult:
    """Serve the page until Ctrl-C, or write a Space."""
    if space is not None:
        from .space import write_space

        files = write_space(space)
        return CommandResult({"folder": space, "files": files}, "\n".join(f"{space}/{name}" for name in files))
    from unlearning_adapters.search.interrupts import interrupts_wait

    from .serve import import_gradio, serve

    import_gradio()  # before the pipeline, which takes longer
    from .bench import Bench
    from .page import make_page
    from .session import Sessions

    sessions = Sessions(adapters)
    sessions.of("first look").close()  # an adapter that cannot be read is an error now, not on the page
    sessions.close("first look")
    pipe = open_pipeline(pipeline, dtype, device)
    bench = Bench(pipe, pipeline, {name: opened(value) for name, value in call.items()}, call)
    page = make_page(bench, sessions)
    try:
        address = serve(page, port, browser)
    finally:
        with interrupts_wait():  # a second Ctrl-C leaves no files behind either
            sessions.close_all()
    return CommandResult({"address": address}, f"{address}: closed")
