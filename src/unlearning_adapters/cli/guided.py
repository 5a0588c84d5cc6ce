"""Guided commands: at a terminal they ask for what is missing, and print the plain command before they act."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from unlearning_adapters.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """One thing that a command needs.

    Args:
        text: What is asked.
        default: What Enter takes; "" if there is none.
        option: The option that takes the answer; "" for an argument.
        optional: Whether an empty answer leaves it out.
    """

    text: str
    default: str = ""
    option: str = ""
    optional: bool = False


OUTPUT, SEARCH_FOLDER = ("-o", "--output"), "unlearn-search"
PIPELINE = Question("Pipeline ('shapeworld', a local folder or a Hub repository)", "shapeworld")
CONCEPT = Question("Concept (a shipped one, or a .yaml or .jsonl file)", "shapeworld-red")
ADAPTER = Question("Adapter (a file or its folder)", "adapter")
QUESTIONS = {
    "build": (PIPELINE, CONCEPT, Question("Folder to write", "adapter", "-o")),
    "search": (PIPELINE, CONCEPT, Question("Folder to write", SEARCH_FOLDER, "-o"),
               Question("Settings to try", "100", "--trials")),
    "eval": (PIPELINE, ADAPTER, Question("Folder of the run", "report", "-o"),
             Question("Prompts of each set", "24", "--clips")),
    "push": (ADAPTER, Question("Repository on the Hub (org/name)"),
             Question("result.json or report.json for the card (Enter: none)", "", "--result", optional=True)),
}  # fmt: skip
EXAMPLES = {name: shlex.join(["unlearn", name, *answers]) for name, answers in {
    "build": ["shapeworld", "red", "-o", "no-red"],
    "search": ["shapeworld", "red", "-o", "unlearn-search"],
    "eval": ["shapeworld", "no-red", "-o", "report"],
    "push": ["no-red", "org/no-red"],
}.items()}  # fmt: skip
# What an unfinished run leaves, and what a finished one has.
UNFINISHED = {"search": ("trials.jsonl", "search.json"), "eval": ("run.json", "report.json")}
CONTINUE, MORE, SHOW, OVER = "continue", "more", "show", "start over"


def completed(words: Sequence[str], ask: Callable[[str, str], str] | None = None) -> list[str]:
    """Return the words of a command; one without arguments is asked for at a terminal.

    Args:
        words: The command line.
        ask: Function from a question and its default to the answer; None asks at the terminal.

    Raises:
        ConfigError: If there is no terminal to ask at; the text is a plain command to start from.
    """
    if len(words) == 1 and words[0] in QUESTIONS:
        name = words[0]
        if ask is None and not at_terminal():
            raise ConfigError(
                f"unlearn {name} needs arguments, and there is no terminal to ask at. Write: {EXAMPLES[name]}"
            )
        answers = _answers(name, ask or _prompt)
        words = [name, *answers]
        click.echo(shlex.join(["unlearn", *words]))
        return resumed(words, ask or _prompt)
    if len(words) > 1 and words[0] in UNFINISHED and at_terminal():
        return resumed(words, _prompt)
    return list(words)


def _answers(name: str, ask: Callable[[str, str], str]) -> list[str]:
    words: list[str] = []
    for question in QUESTIONS[name]:
        answer = ask(question.text, question.default)
        while not answer and not question.optional:
            answer = ask(question.text, question.default)
        if answer:
            words += [question.option, answer] if question.option else [answer]
    return words


def resumed(words: Sequence[str], ask: Callable[[str, str], str]) -> list[str]:
    """Ask what to do with a run that the output folder holds already; return the words to run.

    "start over" takes a new folder beside it: what is there was work, and only its owner removes it.
    """
    command, folder = words[0], _folder(words)
    files = UNFINISHED.get(command)
    if files is None or folder is None or not (folder / files[0]).is_file() or (folder / files[1]).is_file():
        return list(words)
    more = "200" if command == "search" else _more_seeds(folder)
    ways = [CONTINUE, MORE, SHOW, OVER] if more else [CONTINUE, SHOW, OVER]
    answer = ask(f"{folder} holds an unfinished run: {', '.join(ways)}", CONTINUE)
    while answer not in ways:
        answer = ask(f"Choose one of {', '.join(ways)}", CONTINUE)
    if answer == SHOW:
        click.echo(shown(folder))
        return resumed(words, ask)
    changed = list(words)
    if answer == MORE:
        option = "--trials" if command == "search" else "--seeds"
        question = (
            "Settings to try, with those before" if command == "search" else "Seeds of each prompt, with those before"
        )
        changed = _with_option(words, (option,), ask(question, more))
    if answer == OVER:
        number = next(number for number in range(2, 1000) if not folder.with_name(f"{folder.name}-{number}").exists())
        changed = _with_option(words, OUTPUT, str(folder.with_name(f"{folder.name}-{number}")))
    if changed != list(words):
        click.echo(shlex.join(["unlearn", *changed]))
    return changed


def _folder(words: Sequence[str]) -> Path | None:
    """Return the output folder of a command line; None if it gives none and the command has no default."""
    for place, word in enumerate(words):
        if word in OUTPUT and place + 1 < len(words):
            return Path(words[place + 1])
        if word.startswith("--output="):
            return Path(word.partition("=")[2])
    return Path(SEARCH_FOLDER) if words[0] == "search" else None


def _with_option(words: Sequence[str], names: Sequence[str], value: str) -> list[str]:
    """Return a command line with an option at this value, in place of what it gave."""
    left: list[str] = []
    place = 0
    while place < len(words):
        if words[place] in names:
            place += 2
            continue
        if not words[place].startswith(tuple(f"{name}=" for name in names if name.startswith("--"))):
            left.append(words[place])
        place += 1
    return [*left, names[0], value]


def _more_seeds(folder: Path) -> str:
    """Return the seeds of the run in a folder and one more; "" if each prompt has its own."""
    seeds = json.loads((folder / UNFINISHED["eval"][0]).read_text("utf-8")).get("seeds")
    return ",".join(map(str, [*seeds, max(seeds) + 1])) if seeds else ""


def shown(folder: Path) -> str:
    """Return what a run's folder holds, in a few lines."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        lines.append(f"{path.name}: {len(path.read_bytes().splitlines())} lines")
    report = folder / "report.md"
    return "\n".join([*lines, *(report.read_text("utf-8").splitlines()[:20] if report.is_file() else [])]) or "nothing"


def at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _prompt(text: str, default: str) -> str:
    return str(click.prompt(text, default=default, show_default=bool(default))).strip()
