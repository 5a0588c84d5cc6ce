"""`unlearn build`: an adapter from the pairs of a concept, or one of each of several concepts."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearning_adapters.adapter.file import file_at
from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import open_pipeline, opened
from unlearning_adapters.cli.records.record import file_digest, write_record
from unlearning_adapters.config import METHODS
from unlearning_adapters.errors import ConfigError

if TYPE_CHECKING:
    from unlearning_adapters.adapter.adapter import UnlearningAdapter


def site_names(text: str) -> str | tuple[str, ...]:
    """Read the kinds or patterns of sites, such as "text,image"; a single one stays a string."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names[0] if len(names) == 1 else names


@command("build", "build an adapter from a concept's pairs, or one of each of several concepts")
@options.pipeline
@options.concepts
@options.output("DIR", "folder or .safetensors file to write; of several concepts a folder with one for each")
@click.option(
    "--scope",
    type=click.Choice(["word", "concept"]),
    help="what prompts say, or also what the model draws where they leave it open (default: word)",
)
@click.option(
    "--soft-prompts",
    type=int,
    metavar="N",
    help="with --scope concept: learn N soft prompts against the edit and erase them as well (default: 0)",
)
@click.option("--method", type=click.Choice(METHODS), help="how directions are found (default: ridge)")
@options.strength("part of the direction that is removed (default: calibrated on the pairs)")
@click.option("--rank", type=int, help="directions per site (default: 1)")
@click.option("--epsilon", type=float, help="regularisation of ridge (default: 0.001)")
@click.option(
    "--landing",
    type=click.Choice(["majority", "mean"]),
    help="where ridge leads the concept: to what most safe sides agree on (default), or to their mean",
)
@click.option(
    "--shrinkage",
    type=float,
    metavar="X",
    help="spare others in a stack of many, 0 (exact, the default) to 1",
)
@click.option("--components", type=int, help="principal components of pca and cpca (default: 100)")
@click.option("--contrast", type=float, help="weight of the neutral covariance in cpca (default: 1)")
@click.option(
    "--sites",
    type=options.FromText(site_names),
    metavar="NAME,NAME",
    help="'text', 'text-in-blocks', 'text-projection', 'image', 'hidden' or name patterns (default: by the pairs)",
)
@click.option(
    "--blocks",
    type=options.FromText(options.block_numbers),
    metavar="N,N-N",
    help="blocks to use, such as 0,4-7 (default: all)",
)
@click.option(
    "--block-strengths",
    type=options.FromText(options.block_factors),
    metavar="N=X,N=X",
    help="multiply the strength in some blocks, such as 0=0.5,3=1.2 (default: 1 in all)",
)
@click.option("--pairs", type=int, metavar="N", help="use the first N pairs (default: 5, or all if there are fewer)")
@click.option("--seed", type=int, help="seed of the noise and of the random method (default: 0)")
@click.option("--batch-size", type=options.COUNT, metavar="N", help="prompts per call of the pipeline (default: 16)")
@click.option(
    "--retain",
    multiple=True,
    metavar="TEXT",
    help="what must stay, worded as the concept is in its pairs, in whose sentences it is named; repeat it",
)
@click.option(
    "--neutral-cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="keep what the base reads of neutral prompts in DIR, for later builds on the same base",
)
@click.option(
    "--clips",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="clips for --scope concept, in DIR/unsafe, DIR/safe and DIR/neutral (default: the pipeline makes them)",
)
@options.call_arguments
@options.placement
def build(
    pipeline: str,
    concepts: tuple[str, ...],
    output: str,
    retain: tuple[str, ...],
    neutral_cache: Path | None,
    clips: Path | None,
    call: dict[str, Any],
    strength: Any,
    dtype: str | None,
    device: str | None,
    **settings: Any,
) -> CommandResult:
    """Build and save adapters; `settings` are fields of `BuildConfig`, `call` arguments of the pipeline's call."""
    from unlearning_adapters.concepts.concept import load_concept
    from unlearning_adapters.config import BuildConfig

    by_component = isinstance(strength, dict)
    settings |= {"strength": None if by_component else strength}
    config, loaded = BuildConfig(**options.given(settings)), [load_concept(concept) for concept in concepts]
    if clips is not None and len(loaded) > 1:
        raise ConfigError(f"The clips of --clips are those of one concept, but {len(loaded)} are named. Name one.")
    loaded = [concept.retaining(retain, like=loaded[0]) for concept in loaded]
    places = _places(output, [concept.name for concept in loaded])
    arguments = {name: opened(value) for name, value in call.items()}
    for place in places:
        file_at(place)  # before the work, not after it
    from unlearning_adapters.building.build import build_adapter
    from unlearning_adapters.building.build_many import build_adapters
    from unlearning_adapters.pipelines.sites import denoisers
    from unlearning_adapters.runtime.components import at_strength
    from unlearning_adapters.runtime.strengths import by_component as check_components

    pipe = open_pipeline(pipeline, dtype, device)
    if by_component:
        check_components(strength, tuple(denoisers(pipe)), loaded[0].name)  # before the work, not after it
    from unlearning_adapters.shapeworld.models.generate import generation_of, prompt_length

    start = time.perf_counter()
    generation = generation_of(pipe)  # clips for scope="concept" are made as the model is called; words need less
    call_kwargs = generation if config.scope == "concept" else prompt_length(generation)
    shared: dict[str, Any] = {"call_kwargs": {**call_kwargs, **arguments}, "neutral_cache": neutral_cache}
    if clips is None:
        adapters = build_adapters(pipe, loaded, config, **shared)
    else:
        adapters = [build_adapter(pipe, loaded[0], config, clips=clips, **shared)]
    if by_component:
        adapters = [at_strength(adapter, strength) for adapter in adapters]
    seconds = time.perf_counter() - start
    results = [_saved(adapter, place) for adapter, place in zip(adapters, places, strict=True)]
    for each, concept, place in zip(results, loaded, places, strict=True):
        write_record(
            place,
            pipe,
            pipeline,
            prompts={"pairs": [concept.pairs_hash], "neutral": concept.neutral, **_clip_digests(clips)},
            seeds={"build": config.seed},
            results={"sha256": file_digest(each["file"]), **{key: each[key] for key in ("strength", "rank", "sites")}},
            part=concept.name if len(loaded) > 1 else "",
        )
    text = "\n".join(
        f"{each['file']}: {each['concept']}, {each['method']}, strength {each['strength']:.3g}, rank {each['rank']}, "
        f"{each['sites']} sites, {each['bytes']:,} bytes"
        for each in results
    )
    if len(results) == 1:
        return CommandResult({**results[0], "seconds": round(seconds, 3)}, f"{text}, built in {seconds:.1f} s")
    data = {"adapters": results, "seconds": round(seconds, 3)}
    return CommandResult(data, f"{text}\n{len(results)} adapters, built in {seconds:.1f} s")


def _clip_digests(folder: Path | None) -> dict[str, list[str]]:
    """Return what the record of a build says of given clips."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {"clips": [f"{file.relative_to(folder)} {file_digest(file)}" for file in files]}


def _places(output: str, names: Sequence[str]) -> list[Path]:
    """Return where to save the adapter of each concept."""
    if len(names) == 1:
        return [Path(output)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Expected concepts of different names, but got {twice[0]!r} twice. Rename one of them.")
    if output.endswith(".safetensors"):
        raise ConfigError(f"Expected a folder for {len(names)} adapters, but got {output!r:.200}. Give -o a folder.")
    return [Path(output) / name for name in names]


def _saved(adapter: "UnlearningAdapter", place: Path) -> dict[str, Any]:
    """Save an adapter and return what to say of it."""
    file = adapter.save_pretrained(place)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "concept": adapter.info.concept,
        "method": adapter.info.method,
        "strength": adapter.strength,
        "rank": adapter.rank,
        "sites": len(adapter.sites),
    }
