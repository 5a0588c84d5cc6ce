"""`reproduce.json`: what an adapter, a report or a search was made from, beside it, so that it can be made again."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.errors import ConfigError

SCHEMA = "unlearning-reproduction/1"
FILE = "reproduce.json"
PACKAGES = ("unlearning-adapters", "torch", "diffusers", "transformers", "peft", "numpy")
OUTPUT = ("-o", "--output")
BUDGET = "--time-budget"  # how long a run may take does not change its result, and its repetition ends when it is done
TIMES = ("seconds", "build_seconds")


def write_record(
    place: str | Path,
    pipe: Any,
    source: str,
    *,
    prompts: Mapping[str, Sequence[Any]],
    seeds: Mapping[str, Any],
    results: Mapping[str, Any],
    part: str = "",
    command: Sequence[str] | None = None,
) -> Path | None:
    """Write `reproduce.json` into a folder, or beside a file as `<stem>.reproduce.json`.

    Args:
        place: The folder or file of the result.
        pipe: The pipeline.
        source: What the command line calls it.
        prompts: Texts by what they are for; their hashes are written, not they.
        seeds: Seeds by what they are for.
        results: What came out, as plain JSON types; `unlearn reproduce` compares it. Times are left out.
        part: Where in the command's output the place is; "" if it is the output itself.
        command: Words of the command that makes the result; None takes those of this process.

    Returns:
        The file; None if the process was not started as a command of `unlearn`.
    """
    context = click.get_current_context(silent=True)
    words = command or (context.find_root().obj if context else None)
    if not words:
        return None
    from unlearning_adapters.pipelines.base_model import base_model_of, base_revision_of
    from unlearning_adapters.pipelines.sites import denoisers

    record = {
        "schema": SCHEMA,
        "command": list(words),
        "part": part,
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "base": {
            "source": source,
            "name": Path(base_model_of(pipe)).name,
            "revision": base_revision_of(next(iter(denoisers(pipe).values()))),
        },
        "hashes": {name: digest(texts) for name, texts in prompts.items()},
        "seeds": dict(seeds),
        "machine": machine(pipe),
        "results": untimed(dict(results)),
    }
    target = Path(place)
    target = target.with_name(f"{target.stem}.{FILE}") if target.suffix == ".safetensors" else target / FILE
    return write_whole(target, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def write_report_record(
    folder: str | Path,
    pipe: Any,
    source: str,
    report: Any,
    suite: Any,
    adapter: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    command: Sequence[str] | None = None,
) -> Path | None:
    """Write the record of an evaluation.

    Args:
        folder: The folder of the report.
        pipe: The pipeline.
        source: What the command line calls it.
        report: The `Report`.
        suite: The `Suite`.
        adapter: File of the adapter.
        seeds: Seeds of each prompt; None if each has its own.
        command: As for `write_record`.
    """
    from unlearning_adapters.evaluation.metrics import RATES

    prompts = {part.name: [prompt.text for prompt in part.prompts] for part in suite.sets}
    return write_record(
        folder,
        pipe,
        source,
        prompts=prompts | {"adapter": [file_digest(adapter)]},
        seeds={"prompts": None if seeds is None else list(seeds)},
        results={"status": report.status}
        | {name: {key: arm[key] for key in RATES} for name, arm in report.data["arms"].items()},
        command=command,
    )


def untimed(value: Any) -> Any:
    """Return plain JSON types without the times in them."""
    if isinstance(value, Mapping):
        return {name: untimed(each) for name, each in value.items() if name not in TIMES}
    return [untimed(each) for each in value] if isinstance(value, (list, tuple)) else value


def digest(texts: Sequence[Any]) -> str:
    """Return the SHA-256 of texts in their order."""
    return hashlib.sha256(json.dumps([str(text) for text in texts], ensure_ascii=False).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def machine(pipe: Any) -> dict[str, Any]:
    """Return the machine in general words: no name, no path, no user."""
    import torch

    device = getattr(pipe, "device", None)
    kind = "cpu" if device is None else device.type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else platform.machine()
    return {"system": platform.system(), "device": f"{kind}: {name}", "threads": torch.get_num_threads()}


def read_record(path: str | Path) -> dict[str, Any]:
    """Return what a `reproduce.json`, or the folder that holds one, says.

    Raises:
        ConfigError: If it cannot be read, or is no such record.
    """
    place = Path(path)
    place = place / FILE if place.is_dir() else place
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {str(place)!r}: {error}. Give a {FILE}.") from error
    words = record.get("command") if isinstance(record, dict) else None
    valid = isinstance(record, dict) and record.get("schema") == SCHEMA
    part = record.get("part", "") if valid else ""
    if not isinstance(part, str) or Path(part).name != part:
        raise ConfigError(f"{str(place)!r} names a part of its result that is no folder in it.")
    if not valid or not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
        raise ConfigError(f"{str(place)!r} is no {FILE} of the kind {SCHEMA!r}. Give one that `unlearn` wrote.")
    return dict(record)


def with_output(words: Sequence[str], output: str) -> list[str]:
    """Return the words of a command with another output, and without a time budget."""
    result, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in (*OUTPUT, BUDGET):
            skip = True
        elif not word.startswith(("--output=", f"{BUDGET}=")):
            result.append(word)
    return [*result, "-o", output]


def differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield each value in which two records differ, as one line."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*then, *now)):
            yield from differences(then.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for place, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from differences(one, other, f"{name}[{place}]")
    elif then != now:
        yield f"{name}: {then!r} then, {now!r} now"
