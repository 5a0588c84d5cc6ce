"""Search the settings of a build: both aims are measured by the proxy, and no trial samples, judges or reloads."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.building.build import assemble
from unlearning_adapters.building.gains import with_block_strengths
from unlearning_adapters.building.inputs import BuildInputs, record_inputs
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import METHODS, BuildConfig
from unlearning_adapters.errors import AdapterNameError, ConceptError, ConfigError
from unlearning_adapters.methods.registry import find_direction, find_strength
from unlearning_adapters.pipelines.base_model import base_model_of
from unlearning_adapters.pipelines.edits import check_no_lora
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    get_list_unlearning_adapters,
    load_unlearning_adapter,
)

from .held_out import Split, split_concept
from .interrupts import interrupts_wait
from .plot import front_svg
from .proxy import STEPS, Proxy, Score
from .space import STRENGTH, Trial, choose, first_guesses, pareto_front, suggest, trials_of

TRIALS = 100
FORMAT = 2  # 1 had no strength per block; its queue of first guesses would leave that choice open
JOURNAL, LINES, RESULT, PLOT, BEST = "study.journal", "trials.jsonl", "search.json", "front.svg", "best"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        concept: Name of the concept.
        trials: All trials that were measured, also those of earlier runs.
        front: The trials that no other trial beats in both aims, sorted by leftover.
        best: The one of the front that was chosen, and saved.
        tests: Score on the test prompts of each trial of the front; empty if there are none.
        interrupted: Whether Ctrl-C ended it before all trials were run.
        record: What `search.json` holds.
    """

    concept: str
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    best: Trial
    tests: tuple[Score, ...]
    interrupted: bool
    record: Mapping[str, Any]


class Search:
    """A pipeline and a concept, recorded once: any number of settings is then measured on them.

    Args:
        pipe: A diffusers pipeline without unlearning adapters.
        concept: What is to be forgotten, with at least two pairs, and with neutral prompts or neighbours.
        seed: Seed of the noise and of the study.
        steps: Number of denoising steps that the proxy compares.
        one_strength: Whether all blocks have the same strength, instead of one of their own where that is better.
        progress: Whether to show progress bars.
        call_kwargs: Further arguments of the pipeline's call, such as {"height": 480}.

    Raises:
        AdapterNameError: If adapters are loaded on the pipeline.
        DenoiserError: If a LoRA acts on it.
        ConceptError: If too little of the concept can be held out.

    Example:
        >>> search = Search(load_shapeworld(), load_concept("red"))
        >>> search.score(BuildConfig(strength=1.5)).most_leftover
    """

    def __init__(
        self,
        pipe: Any,
        concept: Concept,
        *,
        seed: int = 0,
        steps: int = STEPS,
        one_strength: bool = False,
        progress: bool = True,
        call_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        _check_bare(pipe)
        self.pipe, self.seed, self.progress, self.one_strength = pipe, seed, progress, one_strength
        self.split: Split = split_concept(concept)
        settings: dict[str, Any] = {"steps": steps, "seed": seed, "call_kwargs": call_kwargs}
        self.validation = Proxy(pipe, self.split.validation, **settings)
        test = self.split.test
        self.test = Proxy(pipe, test, **settings) if test.forget and test.retain else None
        self.base_config = BuildConfig(pairs=len(self.split.concept.pairs), seed=seed)
        self.inputs: BuildInputs = record_inputs(
            pipe, self.split.concept, self.base_config, progress=progress, call_kwargs=call_kwargs
        )
        self.blocks = sorted({site.block for site in self.inputs.sites if site.block is not None})
        self.identity = {
            "format": FORMAT,
            "concept": concept.name,
            "pairs_hash": concept.pairs_hash,
            "base_model": base_model_of(pipe),
            "seed": seed,
            "steps": steps,
            "one_strength": one_strength,
            "call": {
                name: value for name, value in (call_kwargs or {}).items() if isinstance(value, (int, float, str))
            },
        }
        self._found: dict[tuple[Any, ...], Direction] = {}

    def score(self, config: BuildConfig, *, test: bool = False) -> Score:
        """Return what the proxy says of settings, which must have a strength; the pipeline is left as it was.

        Args:
            config: Method, rank, epsilon, contrast, blocks, strength and strengths of blocks.
            test: Whether the test prompts are measured instead of those of the validation.
        """
        proxy = self.test if test else self.validation
        if proxy is None:
            raise ConceptError("There are no test prompts. Give the concept evaluation prompts that name it.")
        with acting(self.pipe, self._trial_adapter(config)):
            return proxy.measure()

    def suggest(self, trial: Any) -> BuildConfig:
        """Let an Optuna trial choose settings."""
        return suggest(trial, self.blocks, len(self.split.concept.pairs), self.seed, self.one_strength)

    def adapter(self, config: BuildConfig) -> UnlearningAdapter:
        """Return the adapter of settings as it can be saved, with the stock LoRA factors."""
        return assemble(self.pipe, self.split.concept, config, self._directions(config), config.strength or 1.0)

    def calibrated(self) -> float:
        """Return the strength that a build with the default settings would write."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        rows = self.inputs.rows(0)
        return min(max(find_strength(rows, self.base_config, generator), STRENGTH[0]), STRENGTH[1])

    def _trial_adapter(self, config: BuildConfig) -> UnlearningAdapter:
        info = AdapterInfo(self.split.concept.name, config.method, 1.0 if config.strength is None else config.strength)
        return UnlearningAdapter(info, self._directions(config))

    def _directions(self, config: BuildConfig) -> dict[str, Direction]:
        sites = [s for s in self.inputs.sites if config.blocks is None or s.block in config.blocks]
        directions = {site.name: self._direction(config, self.inputs.group_of(site)) for site in sites}
        return with_block_strengths(directions, sites, config.block_strengths)

    def _direction(self, config: BuildConfig, group: int) -> Direction:
        key = (group, config.method, *(getattr(config, name) for name in METHODS[config.method].settings))
        if key not in self._found:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            with self.inputs.named(group):
                self._found[key] = find_direction(self.inputs.rows(group), config, generator)
        return self._found[key]


def run_search(search: Search, output: str | Path, trials: int = TRIALS) -> SearchResult:
    """Try settings until there are `trials` in all, then choose. A search that the folder holds is continued.

    Args:
        search: What is searched.
        output: Folder of `trials.jsonl`, `search.json`, `front.svg`, the adapter of the chosen setting in `best`, and
            the journal of the study.
        trials: Number of trials, with those of earlier runs.

    Returns:
        What was found. Ctrl-C ends the trials, and what was found until then is written.

    Raises:
        ConfigError: If Optuna is missing, `trials` is below 1, or the folder holds another search.
        KeyboardInterrupt: If Ctrl-C came before the first trial was measured.
    """
    if trials < 1:
        raise ConfigError(f"Expected `trials` to be at least 1, but got {trials}.")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    study = _open_study(search, folder)
    interrupted = _try_settings(search, study, folder, trials)
    measurements = _measured(study)
    if not measurements:
        raise KeyboardInterrupt
    front = pareto_front(study)
    best = choose(front)
    tests = tuple(search.score(trial.config, test=True) for trial in front) if search.test else ()
    result = SearchResult(search.split.concept.name, measurements, front, best, tests, interrupted, {})
    search.adapter(best.config).save_pretrained(folder / BEST)
    return _write(search, result, folder)


@contextmanager
def acting(pipe: Any, adapter: UnlearningAdapter) -> Iterator[None]:
    """Let an adapter act on a pipeline inside of a `with` block."""
    name = load_unlearning_adapter(pipe, adapter)
    try:
        yield
    finally:
        delete_unlearning_adapters(pipe, name)


def load_optuna() -> Any:
    """Return the module `optuna`; `ConfigError` if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("A search needs Optuna: pip install 'unlearning-adapters[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_bare(pipe: Any) -> None:
    active = [name for names in get_list_unlearning_adapters(pipe).values() for name in names]
    if active:
        raise AdapterNameError(
            f"A search compares with the base, but the pipeline has the adapter {active[0]!r}. "
            "Call unload_unlearning_adapters() first."
        )
    check_no_lora(pipe, "A search")


def _open_study(search: Search, folder: Path) -> Any:
    """Return the study of a folder, a new one if there is none."""
    optuna = load_optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(
        storage=storage, study_name="search", directions=["minimize", "minimize"], load_if_exists=True
    )
    identity = study.user_attrs.get("search")
    if identity is None:
        guesses = first_guesses(search.calibrated())
        with interrupts_wait():
            study.set_user_attr("search", search.identity)
            for guess in guesses:
                study.enqueue_trial(guess)
    elif identity != search.identity:
        key = next(name for name in search.identity if identity.get(name) != search.identity[name])
        raise ConfigError(
            f"{str(folder)!r} holds a search with {key} {identity.get(key)!r}, not {search.identity[key]!r}. "
            "Choose another folder."
        )
    # Another seed after each break, or the same settings would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=search.seed + len(study.trials))
    return study


def _try_settings(search: Search, study: Any, folder: Path, trials: int) -> bool:
    """Run trials until there are enough; return whether Ctrl-C ended them."""
    count = len(_measured(study))
    _write_lines(folder / LINES, _measured(study))
    failures = 0
    with tqdm(
        total=trials, initial=min(count, trials), desc="Trials", unit="trial", disable=not search.progress
    ) as bar:
        while count < trials:
            trial: Any = None
            try:
                with interrupts_wait():
                    trial = study.ask()
                    config = search.suggest(trial)
                score = search.score(config)
                with interrupts_wait():
                    for name, value in (("settings", config.to_dict()), ("mean_leftover", score.mean_leftover)):
                        trial.set_user_attr(name, value)
                    study.tell(trial, [score.most_leftover, score.mean_drift])
            except ConceptError:  # such settings find no direction in these pairs
                with interrupts_wait():
                    study.tell(trial, state=load_optuna().trial.TrialState.FAIL)
                failures += 1
                if failures > trials:
                    raise
                continue
            except KeyboardInterrupt:
                if trial is not None:
                    with interrupts_wait():
                        study.tell(trial, state=load_optuna().trial.TrialState.FAIL, skip_if_finished=True)
                return True
            count += 1
            bar.update()
            with (folder / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_measured(study)[-1].to_dict()) + "\n")
    return False


def _measured(study: Any) -> tuple[Trial, ...]:
    complete = study.get_trials(deepcopy=False, states=(load_optuna().trial.TrialState.COMPLETE,))
    return trials_of(complete)


def _write_lines(path: Path, trials: Sequence[Trial]) -> None:
    path.write_text("".join(json.dumps(trial.to_dict()) + "\n" for trial in trials), encoding="utf-8")


def _write(search: Search, result: SearchResult, folder: Path) -> SearchResult:
    tests = [
        {"number": trial.number, "leftover": score.most_leftover, "drift": score.mean_drift}
        for trial, score in zip(result.front, result.tests, strict=False)
    ]
    validation, test = search.split.validation, search.split.test
    record = {
        **search.identity,
        "interrupted": result.interrupted,
        "prompts": {
            "validation": [len(validation.forget), len(validation.retain)],
            "test": [len(test.forget), len(test.retain)],
        },
        "best": result.best.number,
        "front": [trial.number for trial in result.front],
        "test": tests,
        "trials": [trial.to_dict() for trial in result.trials],
        "versions": {name: version_of(name) for name in ("torch", "diffusers", "optuna")},
    }
    write_record(folder, record)
    places = [trial.place for trial in result.trials]
    plot = front_svg(
        f"{result.concept}: {len(places)} trials", places, [t.place for t in result.front], result.best.place
    )
    (folder / PLOT).write_text(plot, encoding="utf-8")
    return replace(result, record=record)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `search.json`."""
    (folder / RESULT).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
