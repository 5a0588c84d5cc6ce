"""Measure other ways to keep a concept out of clips that do not name it: python -m benchmarks.concept_rivals; resumes.

Writes benchmarks/concept-rivals.json and .md. One concept per factor, on the embedded model, with prompts and seeds
that no other file uses. All edits at video tokens are built from the same clips, noise levels and layers as
`scope="concept"`, and stand beside the same edit of words; each is shown at three strengths, since these methods do
not say which one suits video tokens.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unlearning_adapters as ua
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.inputs import record_inputs
from unlearning_adapters.building.video.sites import find_video_sites
from unlearning_adapters.evaluation.arms.arm import adapter_arm
from unlearning_adapters.evaluation.comparison.esd import EsdSettings, train_esd
from unlearning_adapters.methods.registry import find_direction
from unlearning_adapters.methods.rows import GroupRows
from unlearning_adapters.pipelines.hooks import after_calls
from unlearning_adapters.shapeworld.models.generate import generation_of

from .concept import COLUMNS, NUMBERS, draw_sets, drift, look, open_rates, other_rates, row
from .hidden_rows import HiddenRows, middle_block, read_hidden_rows
from .models import open_model
from .posterior import value_prompts, without_concept
from .worlds import NEIGHBOURS, markdown_table, write_results

FOLDER = Path(__file__).parent
FILE = FOLDER / "concept-rivals.json"
SEED = 9419  # of the prompts; no other file uses it
VALUES = ("green", "square", "right")
KINDS = ("open", "named", NEIGHBOURS)
LENGTH = 32  # tokens that the embedded model reads
STRENGTHS = (0.1, 0.3, 1.0)
GATES = (0.0, 0.3, 0.5)
AT_VIDEO_TOKENS = {
    "mean": "the paper's refusal vector",
    "cpca": "the paper's cPCA",
    "leace": "LEACE",
    "ridge": "our direction for words",
}
Enter = Callable[[Any], Any]  # pipeline -> context in which it is in the arm's state


def arms(
    pipe: Any, concept: ua.Concept, prompts: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Enter, Mapping[str, Any]]]:
    """Yield the name of each arm, what makes its state, and arguments that it adds to the pipeline's call.

    `prompts` names each value of the factor for each prompt, the concept first; only the reference is told it.
    """
    call = generation_of(pipe)
    build = partial(ua.build_adapter, pipe, concept, progress=False, call_kwargs=call)
    word, full = build(ua.BuildConfig()), build(ua.BuildConfig(scope="concept"))
    yield "scope word", _attached(word), {}
    yield "scope concept", _attached(full), {}
    for method in ("uce", "rece"):
        yield f"{method}, at words", _attached(build(ua.BuildConfig(method=method))), {}
    rows = read_hidden_rows(pipe, concept)
    for method, title in AT_VIDEO_TOKENS.items():
        found = directions_at(rows.sites, ua.BuildConfig(method=method))
        for strength in STRENGTHS:
            yield f"{title}, at video tokens, strength {strength}", _attached(_beside(word, found, strength)), {}
    last = {name: d for name, d in full.directions.items() if name not in word.directions and "block" not in name}
    for factor in (1.0, 2.0, 4.0):
        yield f"the last layer alone, {factor:g} times", _attached(_beside(word, last, factor * full.strength)), {}
    for strength in (1.0, 3.0):
        vector = _mean_difference(rows.middle)
        yield f"REINS-like, the middle block steered, {strength:g}", _steered(vector, strength), {}
        yield f"transported from the text, {strength:g}", _steered(_transported(pipe, concept, rows), strength), {}
    for name, directions in text_roads(pipe, concept, call).items():
        for strength in (1.0, 3.0):
            yield f"{name}, {strength:g}", _attached(_beside(word, directions, strength)), {}
    for gate in GATES:
        told = "told all values" if not gate else f"told all values, from {gate:g} on"
        yield f"reference: {told}", partial(without_concept, prompts=prompts, gate=gate), {}
    yield "negative prompt", lambda _: nullcontext(), {"negative_prompt": ", ".join(concept.words)}
    yield "SAFREE-like", _projected_prompts(concept), {}
    for title, at in (
        ("ESD, trained at words", None),
        ("LoRA by negative guidance, trained at video tokens", find_video_sites(pipe)),
    ):
        lora = train_esd(pipe, concept, EsdSettings(), sites=at, call_kwargs=call, progress=False)
        yield title, lora.acting, {}


def directions_at(sites: Mapping[str, GroupRows], config: ua.BuildConfig) -> dict[str, Direction]:
    """Return the direction of each layer; cPCA finds none where nothing exceeds the neutral covariance."""
    found = {}
    for name, rows in sites.items():
        with suppress(ua.ConceptError):
            found[name] = find_direction(rows, config, torch.Generator("cpu"))
    return found


def text_roads(pipe: Any, concept: ua.Concept, call: Mapping[str, Any]) -> dict[str, dict[str, Direction]]:
    """Return two edits of what text layers read, by name: directions that write the concept's refusal vector r.

    *Offset*: `a = (S + e I)^-1 m`, m the mean of all rows and S their second moment, so that `a . x` is about 1 for
    every token: all prompts are led away from the concept by r. *Empty prompt*: `a` reads the tokens of the empty
    prompt alone, and r is added to them, so that guidance leads away from the concept.
    """
    inputs = record_inputs(pipe, concept, ua.BuildConfig(), progress=False, call_kwargs=call)
    roads: dict[str, dict[str, Direction]] = {"offset at text layers": {}, "empty prompt as a negative one": {}}
    for site in inputs.sites:
        rows = inputs.rows(inputs.group_of(site))
        r, every = _mean_difference(rows), torch.cat([*rows.neutral.prompts, *rows.safe]).double()
        empty = torch.cat(rows.neutral.guidance).double()
        for name, target, others in (
            ("offset at text layers", every, every),
            ("empty prompt as a negative one", empty, torch.cat([every, empty])),
        ):
            read = torch.linalg.solve(_ridged(others), target.mean(0))
            read = (read / (target @ read).mean())[None].float()
            sign = 1.0 if target is every else -1.0
            roads[name][site.name] = Direction(read, sign * r[None], additive=True)
    return roads


def _ridged(rows: Tensor) -> Tensor:
    """Return the second moment of rows with a thousandth of its mean eigenvalue added, (features, features)."""
    moment = rows.T @ rows / len(rows)
    return moment + 1e-3 * moment.trace() / len(moment) * torch.eye(len(moment), dtype=moment.dtype)


def _mean_difference(rows: GroupRows) -> Tensor:
    """Return the mean of unsafe minus safe rows, (features,): also the leading supervised principal component of the
    two labels, for `X H y` is all that the kernel of two labels holds (Barshan et al. 2011, which REINS uses)."""
    return (torch.cat(rows.unsafe).mean(0) - torch.cat(rows.safe).mean(0)).float()


def _transported(pipe: Any, concept: ua.Concept, rows: HiddenRows) -> Tensor:
    """Return the difference of the two sides' mean text embeddings, carried to the middle block.

    The map is a least-squares fit on neutral prompts alone, from the mean embedding of a prompt to the mean of what
    the block writes for its clip (arXiv 2606.05290 fits such a map between two models).
    """
    texts = _embeddings(pipe, rows.neutral_prompts)
    states = torch.stack([level.mean(0) for level in rows.middle.neutral.prompts[-len(rows.neutral_prompts) :]])
    texts, states = texts - texts.mean(0), states - states.mean(0)
    gram = texts @ texts.T
    ridge = 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram))
    pairs = concept.pairs
    apart = (_embeddings(pipe, [p.unsafe for p in pairs]) - _embeddings(pipe, [p.safe for p in pairs])).mean(0)
    return (apart @ texts.T) @ torch.linalg.solve(gram + ridge, states)


def _embeddings(pipe: Any, texts: Sequence[str]) -> Tensor:
    """Return the mean of the text encoder's tokens of each text, without padding, shape (texts, width)."""
    embeds, _ = pipe.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    read = embeds.abs().sum(-1, keepdim=True) > 0
    return torch.Tensor((embeds * read).sum(1) / read.sum(1).clamp(min=1))


def _beside(word: ua.UnlearningAdapter, directions: Mapping[str, Direction], strength: float) -> ua.UnlearningAdapter:
    """Return an adapter with other directions beside its own, at a strength that does not depend on the adapter's."""
    merged = dict(word.directions)
    for name, other in directions.items():
        reads, writes = [other.read], [strength / word.strength * other.gain * other.write]
        if own := word.directions.get(name):
            reads, writes = [own.read, *reads], [own.gain * own.write, *writes]
        merged[name] = Direction(torch.cat(reads), torch.cat(writes), additive=True)
    return replace(word, directions=merged, lora_B={})


def _attached(adapter: ua.UnlearningAdapter) -> Enter:
    """Return what attaches an adapter."""
    return adapter_arm(adapter).enter


def _steered(vector: Tensor, strength: float) -> Enter:
    """Return what takes `strength` times a vector from all tokens that the middle block writes, as the steering of
    REINS (arXiv 2606.17257) does at each step; no weight can hold it."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        with ExitStack() as stack:
            after_calls(stack, middle_block(pipe), lambda _m, _a, _k, out: out - strength * vector)
            yield

    return enter


def _projected_prompts(concept: ua.Concept) -> Enter:
    """Return what does to prompts as SAFREE (arXiv 2410.12761): tokens that bring a prompt near the span of the
    concept's phrases are moved out of it, within the span of the prompt without each token in turn."""

    @contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        basis = torch.linalg.svd(_embeddings(pipe, list(concept.words)), full_matrices=False)[2]
        encode = pipe.encode_prompt

        def projected(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            embeds, negative = encode(*args, **kwargs)
            return torch.stack([_moved_out(rows, basis) for rows in embeds]), negative

        pipe.encode_prompt = projected
        try:
            yield
        finally:
            del pipe.encode_prompt

    return enter


def _moved_out(tokens: Tensor, concept: Tensor) -> Tensor:
    """Return a prompt's tokens (tokens, width), those of the concept projected; `concept` is an orthonormal basis."""
    used = tokens.abs().sum(-1) > 0
    rows = tokens[used]
    without = (rows.sum(0) - rows) / max(1, len(rows) - 1)
    distances = (without - without @ concept.T @ concept).norm(dim=1)
    others = (distances.sum() - distances) / max(1, len(rows) - 1)
    prompt = torch.linalg.svd(without, full_matrices=False)[2]
    outside = rows - rows @ concept.T @ concept
    moved = torch.where((distances > 1.01 * others)[:, None], outside @ prompt.T @ prompt, rows)
    result = tokens.clone()
    result[used] = moved
    return result


def measure_rivals(pipe: Any, value: str, clips: int, known: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the arms of one concept that are not known yet."""
    sets = draw_sets(value, clips, SEED)
    base = look(pipe, value, sets, KINDS, f"{value}: base")
    known["base"] = _rates(value, base, base)
    prompts = value_prompts(value, sets, clips, SEED)
    for name, enter, call in arms(pipe, ua.load_concept(f"shapeworld-{value}"), prompts):
        if name in known:
            continue
        with enter(pipe):
            known[name] = _rates(value, look(pipe, value, sets, KINDS, f"{value}: {name}", call), base)
        save()


def _rates(value: str, seen: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    rates = open_rates(value, seen["samples"]["open"], seen["clips"]["open"], base)
    others = other_rates(value, {"other words": (), **seen["samples"]})
    return {**rates, **others, "drift of neighbours": drift(seen["clips"][NEIGHBOURS], base["clips"][NEIGHBOURS])}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the Markdown table: all concepts together, then each."""
    columns, numbers = [name for name in COLUMNS if name != "other words"], [n for n in NUMBERS if n != "build"]
    rows = []
    for label, values in {"all": list(results), **{value: [value] for value in results}}.items():
        for arm in results[values[0]]:
            items = [results[value][arm] for value in values if arm in results[value]]
            rows.append(row((label, arm), items, columns, numbers))
    return markdown_table(["concept", "arm", *columns, *numbers, "open clips show"], rows)


def main() -> None:
    """Measure what is missing, and write both files after each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--values", nargs="+", default=VALUES)
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.file.read_text()) if options.file.exists() else {}

    def save() -> None:
        write_results(options.file, results, table(results))

    for value in options.values:
        measure_rivals(open_model("shapeworld"), value, options.clips, results.setdefault(value, {}), save)
    save()


if __name__ == "__main__":
    main()
