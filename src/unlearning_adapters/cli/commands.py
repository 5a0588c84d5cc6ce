"""What each command of `unlearn` does: call the public functions, and report; what is heavy is imported inside."""

import re
import time
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import ConceptError, ConfigError, EvaluationError, UnlearningError

SHAPEWORLD = "shapeworld"
EMBEDDED = (SHAPEWORLD, "shapeworld-language")
# Options of `apply` and the arguments of a pipeline's call that they stand for.
CALL_OPTIONS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
}
DEMO_OPTIONS = ("concept", "clips", "output")
PUSH_OPTIONS = ("private", "create_pr", "revision", "commit_message", "license", "token", "clips")
PULL_OPTIONS = ("revision", "token")
BUILD_OPTIONS = (
    *("method", "strength", "rank", "epsilon", "landing", "components", "contrast", "sites", "blocks"),
    *("block_strengths", "pairs", "seed"),
)


@dataclass(frozen=True)
class Report:
    """What a command found: `data` for --json, `text` for people, the exit code, and why it is not 0."""

    data: dict[str, Any]
    text: str
    code: int = 0
    failure: str = ""


def demo(options: Namespace) -> Report:
    """Run the main job on ShapeWorld."""
    from unlearning_adapters.evaluation.demo import OUTPUT, format_demo, run_demo

    result = run_demo(**_given(options, DEMO_OPTIONS))
    return Report(result, format_demo(result, getattr(options, "output", OUTPUT)))


def build(options: Namespace) -> Report:
    """Build an adapter and save it."""
    from unlearning_adapters.concepts.concept import load_concept
    from unlearning_adapters.config import BuildConfig

    config, concept = BuildConfig(**_given(options, BUILD_OPTIONS)), load_concept(options.concept)
    from unlearning_adapters.building.build import build_adapter

    pipe = open_pipeline(options.pipeline, options.dtype, options.device)
    from unlearning_adapters.shapeworld.models.generate import generation_of, prompt_length

    start = time.perf_counter()
    adapter = build_adapter(pipe, concept, config, call_kwargs=prompt_length(generation_of(pipe)))
    seconds = time.perf_counter() - start
    file = adapter.save_pretrained(options.output)
    data = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "concept": adapter.info.concept,
        "method": adapter.info.method,
        "strength": adapter.strength,
        "rank": adapter.rank,
        "sites": len(adapter.sites),
        "seconds": round(seconds, 3),
    }
    text = (
        f"{file}: {adapter.info.concept}, {adapter.info.method}, strength {adapter.strength:.3g}, rank {adapter.rank}, "
        f"{len(adapter.sites)} sites, {data['bytes']:,} bytes, built in {seconds:.1f} s"
    )
    return Report(data, text)


def inspect(options: Namespace) -> Report:
    """Show what the header of an adapter file says."""
    from unlearning_adapters.adapter.file import inspect_adapter

    found = inspect_adapter(options.adapter)
    info, sites = found["info"], found["sites"]
    base = " ".join(part for part in (info.get("base_model"), info.get("base_revision")) if part) or "unknown"
    named = [f"{name} ({kind})" for name, kind in info.get("denoisers", {}).items()]
    rows = {
        "concept": ": ".join(part for part in (info["concept"], info.get("description")) if part),
        "method": f"{info['method']}, strength {info['strength']:.3g}{_by_site(sites)}, rank {found['rank']}",
        "base": base + (f" ({info['pipeline']})" if info.get("pipeline") else ""),
        "denoisers": ", ".join(named or found["components"]),
        "versions": ", ".join(f"{name} {number}" for name, number in info.get("versions", {}).items()) or "unknown",
        "size": f"{found['bytes']:,} bytes, {len(sites)} sites",
    }
    lines = [found["file"], *(f"  {name:<10} {value}" for name, value in rows.items())]
    alike = Counter(
        (re.sub(r"\b\d+\b", "*", item["name"]), item["in_features"], item["out_features"]) for item in sites
    )
    lines += [f"  {count:>6} x   {name} ({width} -> {out})" for (name, width, out), count in alike.items()]
    return Report(found, "\n".join(lines))


def _by_site(sites: list[dict[str, Any]]) -> str:
    gains = [site["gain"] for site in sites]
    span = " to ".join(dict.fromkeys(f"{gain:.3g}" for gain in (min(gains), max(gains))))
    return "" if set(gains) == {1.0} else f" (times {span}, by site)"


def apply(options: Namespace) -> Report:
    """Generate clips with adapters on a pipeline."""
    from unlearning_adapters.adapter.adapter import load_adapter

    strengths = options.strength or [None] * len(options.adapters)
    if len(strengths) != len(options.adapters):
        raise ConfigError(
            f"Got {len(strengths)} values of --strength for {len(options.adapters)} adapters. "
            "Give one for each, in their order, or none to use their own."
        )
    files = _numbered(options.output, len(options.prompt))
    adapters = [load_adapter(source) for source in options.adapters]  # before the pipeline, which takes longer
    pipe = open_pipeline(options.pipeline, options.dtype, options.device)
    arguments = _call_arguments(pipe, options)
    from unlearning_adapters.runtime.verbs import fuse_unlearning_adapters, load_unlearning_adapter

    for number, (adapter, strength) in enumerate(zip(adapters, strengths, strict=True), start=1):
        load_unlearning_adapter(pipe, adapter, adapter_name=f"adapter-{number}", strength=strength)
    if options.fuse:
        fuse_unlearning_adapters(pipe)
    for prompt, file in zip(options.prompt, files, strict=True):
        _write_clip(pipe, prompt, file, options, arguments)
    data = {
        "files": [str(file) for file in files],
        "prompts": options.prompt,
        "adapters": options.adapters,
        "concepts": [adapter.info.concept for adapter in adapters],
        "strengths": [
            adapter.strength if strength is None else strength
            for adapter, strength in zip(adapters, strengths, strict=True)
        ],
        "fused": options.fuse,
        "seed": options.seed,
    }
    return Report(data, "\n".join(data["files"]))


def push(options: Namespace) -> Report:
    """Push an adapter and its card to the Hub."""
    from unlearning_adapters.hub.hub import push_adapter

    result = None if options.result is None else _read_result(Path(options.result))
    url = push_adapter(options.adapter, options.repository, result=result, **_given(options, PUSH_OPTIONS))
    return Report({"repository": options.repository, "url": url}, url)


def pull(options: Namespace) -> Report:
    """Download an adapter from the Hub."""
    from unlearning_adapters.hub.hub import pull_adapter

    pulled = pull_adapter(options.repository, options.output, **_given(options, PULL_OPTIONS))
    data = {"repository": options.repository, "file": str(pulled.file), "commit": pulled.commit}
    return Report(data, f"{pulled.file}: {options.repository} at {pulled.commit}")


def concepts(_options: Namespace) -> Report:
    """List the shipped concepts."""
    from unlearning_adapters.concepts.concept import list_concepts, load_concept

    found = [load_concept(name) for name in list_concepts()]
    width = max(len(concept.name) for concept in found)
    listed = [
        {"name": concept.name, "description": concept.description, "pairs": len(concept.pairs)} for concept in found
    ]
    return Report({"concepts": listed}, "\n".join(f"{item.name:<{width}}  {item.description}" for item in found))


def show_concept(options: Namespace) -> Report:
    """Show the pairs of a concept."""
    from unlearning_adapters.concepts.concept import load_concept

    concept = load_concept(options.name)
    lines = [": ".join(part for part in (concept.name, concept.description) if part), ""]
    for pair in concept.pairs:
        lines += [f"  unsafe  {pair.shown('unsafe')}", f"  safe    {pair.shown('safe')}", ""]
    parts = ("pairs", "neutral", "evaluation", "neighbours")
    lines.append(", ".join(f"{len(getattr(concept, part))} {part}" for part in parts))
    return Report(concept.to_dict(), "\n".join(lines))


def new_concept(options: Namespace) -> Report:
    """Write the template of a concept file."""
    from unlearning_adapters.concepts.concept import concept_template

    text, path = concept_template(options.name), Path(options.output or f"{options.name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConceptError(
            f"{path} exists already and was not changed. Choose another name, or another file with -o."
        ) from None
    return Report({"file": str(path)}, f"{path}: write your pairs in it, then `unlearn build PIPELINE {path} -o DIR`")


def open_pipeline(source: str, dtype: str | None = None, device: str | None = None) -> Any:
    """Return a pipeline.

    Args:
        source: "shapeworld" or "shapeworld-language", which are embedded, a local folder, or a Hub repository.
        dtype: Number type of its weights; None takes float32 for ShapeWorld and on a CPU, else bfloat16.
        device: Where it runs, such as "cuda"; None takes a GPU if there is one.

    Raises:
        ConfigError: If it cannot be opened, or there is no such device.
    """
    import torch

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wide = source in EMBEDDED or place.startswith("cpu")
    try:
        return _load_pipeline(source, getattr(torch, dtype or ("float32" if wide else "bfloat16"))).to(place)
    except UnlearningError:
        raise
    except Exception as error:  # diffusers and the Hub's client have errors of a dozen kinds for the same thing
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Cannot open the pipeline {source!r} on {place!r}: {reason[:240].rstrip('.')}. "
            "Give 'shapeworld', a folder in diffusers' layout, or a Hub repository 'org/name'."
        ) from error


def read_call(texts: list[str]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that `--call NAME=VALUE` gives; values are YAML."""
    import yaml

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise EvaluationError(f"Expected --call as NAME=VALUE, such as num_frames=49, but got {text!r}.")
        found[name] = yaml.safe_load(value)
    return found


def _load_pipeline(source: str, dtype: Any) -> Any:
    from diffusers import DiffusionPipeline

    from unlearning_adapters.shapeworld.models.language_model import load_shapeworld_language
    from unlearning_adapters.shapeworld.models.load import load_shapeworld

    if source in EMBEDDED:
        return (load_shapeworld if source == SHAPEWORLD else load_shapeworld_language)(dtype)
    folder = Path(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ConfigError(f"{source!r} holds no pipeline in diffusers' layout: there is no model_index.json in it.")
    return DiffusionPipeline.from_pretrained(source, dtype=dtype)


def _call_arguments(pipe: Any, options: Namespace) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the options ask for."""
    from inspect import signature

    from unlearning_adapters.shapeworld.models.generate import generation_of

    given = {CALL_OPTIONS[name]: value for name, value in _given(options, tuple(CALL_OPTIONS)).items()}
    accepted = signature(type(pipe).__call__).parameters
    for name, argument in CALL_OPTIONS.items():
        if argument in given and argument not in accepted:
            raise ConfigError(f"{type(pipe).__name__} takes no `{argument}`. Leave --{name.replace('_', '-')} out.")
    return {**generation_of(pipe), **given}


def _write_clip(pipe: Any, prompt: str, file: Path, options: Namespace, arguments: dict[str, Any]) -> None:
    import torch

    from unlearning_adapters.clips import save_clip, to_clip

    generator = torch.Generator("cpu").manual_seed(options.seed)
    output = pipe(prompt, generator=generator, output_type="np", **arguments)
    if not hasattr(output, "frames"):
        raise ConfigError(f"{type(pipe).__name__} makes no clips, and `unlearn apply` writes nothing else.")
    save_clip(to_clip(output.frames[0]), file, options.fps)


def _read_result(path: Path) -> Any:
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read the measured result {str(path)!r}: {error}. Give a result.json.") from error


def _numbered(output: str, count: int) -> list[Path]:
    """Return the path of each clip: out.mp4, or out-1.mp4, out-2.mp4, ..."""
    path = Path(output)
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"Clips are saved as .mp4 files, but got {output!r}. Give a path that ends in .mp4.")
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def _given(options: Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that the command line gives; all others keep the default of the function that is called."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
