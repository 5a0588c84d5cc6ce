"""The front of a search as a page of clips side by side, and the choice of one of its settings."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unlearning_adapters.cli.app.player import SCRIPT, STYLE, grid
from unlearning_adapters.errors import ConfigError

PAGE = "front.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src 'self' file: data:"
LOOK = "body { font-family: system-ui, sans-serif; margin: 24px auto; max-width: 1180px; padding: 0 12px; }"


def write_front_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a page with the clips of the base and of the shown settings of the front, which play in step.

    Args:
        folder: Folder of the search.
        record: What `search.json` holds, with "clips".

    Returns:
        Its path.
    """
    clips, trials = record["clips"], {trial["number"]: trial for trial in record["trials"]}
    heads = ["base"]
    for item in clips["front"]:
        trial = trials[item["number"]]
        mark = ", chosen" if item["number"] == record["best"] else ""
        heads.append(f"trial {item['number']}: left {trial['leftover']:.2f}, drift {trial['drift']:.3f}{mark}")
    columns = [clips["base"], *(item["files"] for item in clips["front"])]
    rows = [
        (prompt, [_video(column[place], f"{prompt}, {head}") for head, column in zip(heads, columns, strict=True)])
        for place, prompt in enumerate(clips["prompts"])
    ]
    style, script = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT))
    title = escape(f"{record['concept']}: the front")
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{LOOK}{style}</style></head>"
        f"<body class='gradio-container'><h1>{title}</h1><p>left: what is left of the concept; drift: relative change "
        f"elsewhere. <code>unlearn search ... --choose N</code> takes another trial.</p>{grid(heads, rows)}"
        f"<script>{script}</script></body></html>"
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def chosen_trial(front: Sequence[Any], number: int) -> Any:
    """Return the setting of the front with this number.

    Raises:
        ConfigError: If the front has none.
    """
    for trial in front:
        if trial.number == number:
            return trial
    numbers = ", ".join(str(trial.number) for trial in front)
    raise ConfigError(f"The front has no trial {number}. It has: {numbers}.")


def _video(file: str, label: str) -> str:
    attributes = f"aria-label='{escape(label, quote=True)}' src='{escape(file, quote=True)}'"
    return f"<video muted loop playsinline preload='auto' {attributes}></video>"
