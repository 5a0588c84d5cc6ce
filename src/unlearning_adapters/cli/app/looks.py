"""What the page says first, and how it looks; its fonts are those of the reader's machine."""

from html import escape
from typing import Any

from .player import SCRIPT, STYLE

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
FIRST_PROMPT = "a red circle moves left on a black background"
FIRST_PROMPTS = f"{FIRST_PROMPT}\na blue square moves up on a white background"
OWN_WORDS = "crimson"
OWN_PAIRS = """a crimson circle moves up | a blue circle moves up
a crimson cross drifts left on white ground | a green cross drifts left on white ground
there is a crimson square sliding down | there is a yellow square sliding down"""


def opening(source: str, pipeline: str, local: bool) -> str:
    """Return the head of the page.

    Args:
        source: What the user called the pipeline.
        pipeline: Its class.
        local: Whether the reader sits at this machine.
    """
    return (
        "<h1 style='font-size:1.35em;margin:0'>Make a video model forget</h1>"
        f"<p class='ua-note'>{escape(source)} ({escape(pipeline)}){', on this machine alone' if local else ''}</p>"
    )


def look() -> dict[str, Any]:
    """Return theme, style and script, as the launch of a page takes them."""
    import gradio as gr

    fonts = [gr.themes.Font(name) for name in FONT]
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=[gr.themes.Font(name) for name in MONO]
    )
    script = f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
    return {"theme": theme, "css": STYLE.read_text(encoding="utf-8"), "head": script}
