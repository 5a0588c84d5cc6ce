"""The search on a tiny Wan with a planted concept: what it finds, and that it can be broken off and gone on with."""

import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_words import planted_pipeline

from planted import planted, snapshot
from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.cli import main as cli
from unlearning_adapters.cli.commands.search import _text
from unlearning_adapters.concepts.concept import Concept, Pair, save_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import AdapterNameError, ConfigError
from unlearning_adapters.runtime.verbs import load_unlearning_adapter
from unlearning_adapters.search.plot import front_svg
from unlearning_adapters.search.search import Search, acting, run_search
from unlearning_adapters.search.space import Trial, choose, pareto_front, rank_correlation

SCENES = (
    ("circle", "blue"), ("dog", "green"), ("car", "yellow"), ("cross", "blue"), ("tree", "green"), ("house", "yellow"),
)  # fmt: skip
CONCEPT = Concept(
    "no-red",
    tuple(Pair(f"a red {thing} moves", f"a {colour} {thing} moves") for thing, colour in SCENES),
    neutral=("a dog moves", "the house in a street", "a car moves on the street", "a cat", "a tree", "a man runs"),
    evaluation=("the red cat sits", "red street", "a woman near a red car", "two red dog"),
    neighbours=("a green cat", "a blue house"),
    words=("red",),
)


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.fixture(scope="module")
def search(pipe):
    return made(pipe)


def made(pipe, **settings) -> Search:
    return Search(pipe, CONCEPT, steps=2, progress=False, call_kwargs=tiny.CALL, **settings)


def trial(number: int, leftover: float, drift: float) -> Trial:
    return Trial(number, BuildConfig(strength=1.0).to_dict(), leftover, leftover, drift)


# What is found.


def test_the_proxy_tells_the_planted_direction_from_a_random_one(search):
    removed = search.score(BuildConfig(pairs=5, strength=1.0))
    control = search.score(BuildConfig(pairs=5, strength=1.0, method="random"))
    assert removed.most_leftover < 0.35 < 0.8 < control.most_leftover
    assert search.score(BuildConfig(pairs=5, strength=1.0), test=True).mean_leftover < 0.5


def test_what_is_saved_is_the_adapter_that_was_chosen(search, pipe, tmp_path):
    result = run_search(search, tmp_path, trials=6)
    saved = load_adapter(tmp_path / "best")
    with acting(pipe, saved):
        score = search.validation.measure()
    assert score.most_leftover == pytest.approx(result.best.leftover, abs=1e-4)
    assert score.mean_drift == pytest.approx(result.best.drift, abs=1e-4)
    assert saved.strength == result.best.config.strength and saved.info.settings == result.best.settings


def test_the_first_trial_is_the_default_build_and_its_calibrated_strength(search, pipe, tmp_path):
    first = run_search(search, tmp_path, trials=1).trials[0]
    built = build_adapter(pipe, search.split.concept, search.base_config, progress=False)
    assert first.config.strength == built.strength
    for site, direction in search.adapter(first.config).directions.items():
        assert torch.equal(direction.read, built.directions[site].read)


def test_a_search_leaves_no_trace_on_the_pipeline(tmp_path):
    pipe = planted_pipeline()
    pipe("a dog", output_type="latent", **tiny.CALL)  # diffusers' own registry comes with the first call
    before = snapshot(pipe)
    run_search(made(pipe), tmp_path, trials=2)
    assert snapshot(pipe) == before


def test_only_some_blocks_are_edited_if_so_set(search):
    assert search.blocks == [0, 1]
    part = search.adapter(BuildConfig(strength=1.0, blocks=(1,)))
    assert part.sites and all(".blocks.1." in site for site in part.sites)
    assert search.score(BuildConfig(strength=1.0, blocks=(1,))).most_leftover > 0.0


def test_a_search_chooses_and_saves_a_strength_per_block(search, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unlearning_adapters.search.search.first_guesses",
        lambda strength: [
            {"method": "mean", "strength": strength, "every_block": True, "one_strength": False,
             "factor_0": first, "factor_1": second}
            for first, second in ((1.0, 0.25), (0.0, 0.0))
        ],
    )  # fmt: skip
    result = run_search(search, tmp_path, trials=2)
    assert [trial.config.block_strengths for trial in result.trials] == [{0: 1.0, 1: 0.25}, {0: 0.0, 1: 0.0}]
    assert result.trials[1].leftover == pytest.approx(1.0, abs=1e-3) and result.trials[1].drift < 1e-3
    assert result.trials[0].leftover < 0.9, "it does something"
    best, saved = result.best.config, load_adapter(tmp_path / "best")
    wanted = {site: best.block_strengths[int(site.split(".")[2])] for site in saved.sites}
    assert {site: item.gain for site, item in saved.directions.items()} == wanted
    with acting(search.pipe, saved):
        assert search.validation.measure().most_leftover == pytest.approx(result.best.leftover, abs=1e-4)
    assert BuildConfig.from_dict(saved.info.settings) == best
    table = _text(result.record, tmp_path)
    assert re.search(r"\d\.\d\d x 0\.\d\d-[01]\.00", table)


def test_trials_choose_equal_and_unequal_strengths(search, tmp_path):
    found = run_search(search, tmp_path, trials=14).trials
    assert all(trial.config.block_strengths is None for trial in found[:5]), "the first guesses"
    unequal = [trial.config.block_strengths for trial in found if trial.config.block_strengths]
    assert unequal and len(unequal) < len(found) - 5
    assert len({tuple(factors.values()) for factors in unequal}) == len(unequal)
    alike = made(search.pipe, one_strength=True)
    assert all(item.config.block_strengths is None for item in run_search(alike, tmp_path / "alike", trials=14).trials)
    with pytest.raises(ConfigError, match="one_strength False, not True"):  # not the same search
        run_search(alike, tmp_path, trials=15)


# Breaking off and going on.


def test_a_folder_of_an_older_format_is_refused(search, tmp_path, monkeypatch):
    monkeypatch.setitem(search.identity, "format", 1)
    run_search(search, tmp_path, trials=1)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="holds a search with format 1, not 2. Choose another folder."):
        run_search(search, tmp_path, trials=2)


def test_a_search_is_gone_on_with(search, tmp_path):
    first = run_search(search, tmp_path, trials=4)
    again = run_search(made(search.pipe), tmp_path, trials=7)
    assert again.trials[:4] == first.trials and len(again.trials) == 7
    lines = (tmp_path / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [trial.to_dict() for trial in again.trials]
    assert run_search(search, tmp_path, trials=7).trials == again.trials  # nothing is left to do


def test_the_same_seed_finds_the_same(search, tmp_path):
    one, other = (run_search(search, tmp_path / name, trials=5) for name in ("one", "other"))
    assert one.trials == other.trials
    texts = [(tmp_path / name / "search.json").read_text(encoding="utf-8") for name in ("one", "other")]
    assert texts[0] == texts[1]


def test_ctrl_c_keeps_what_was_found(search, tmp_path, monkeypatch):
    score, calls = search.score, []

    def broken_off(config, **options):
        calls.append(config)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(config, **options)

    monkeypatch.setattr(search, "score", broken_off)
    result = run_search(search, tmp_path, trials=9)
    assert result.interrupted and len(result.trials) == 3 and (tmp_path / "best").is_dir()
    assert json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))["interrupted"] is True
    monkeypatch.undo()
    resumed = run_search(search, tmp_path, trials=5)
    assert resumed.trials[:3] == result.trials and len(resumed.trials) == 5 and not resumed.interrupted


def test_ctrl_c_before_the_first_trial_ends_the_command(search, tmp_path, monkeypatch):
    def broken_off(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "score", broken_off)
    with pytest.raises(KeyboardInterrupt):
        run_search(search, tmp_path, trials=2)


def test_a_folder_with_another_search_is_refused(search, tmp_path):
    run_search(search, tmp_path, trials=1)
    with pytest.raises(ConfigError, match="holds a search with seed 0, not 5. Choose another folder."):
        run_search(made(search.pipe, seed=5), tmp_path, trials=2)


def test_a_pipeline_with_adapters_is_no_base(tmp_path):
    pipe = planted_pipeline()
    load_unlearning_adapter(pipe, planted(pipe))
    with pytest.raises(AdapterNameError, match="has the adapter 'red'. Call unload_unlearning_adapters"):
        made(pipe)


# Comparing.


def study_of(places):
    """A study in memory with complete trials of the given aims, and one that failed."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    attrs = {"settings": BuildConfig(strength=1.0).to_dict(), "mean_leftover": 0.0}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    for place in places:
        study.add_trial(optuna.trial.create_trial(values=place, user_attrs=attrs))
    return study


def test_the_front_is_what_nothing_beats():
    places = [(0.5, 0.1), (0.1, 0.5), (0.5, 0.2), (0.1, 0.5), (0.05, 0.9)]
    assert [item.number for item in pareto_front(study_of(places))] == [5, 2, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_front_is_that_of_comparing_all_with_all(places):
    def beaten(one):
        return any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in places)

    front = pareto_front(study_of([(float(one), float(two)) for one, two in places]))
    assert [item.place for item in front] == sorted({one for one in places if not beaten(one)})
    assert [item.number for item in front] == [1 + places.index(item.place) for item in front]


def test_the_least_change_wins_among_those_that_erase():
    assert choose([trial(0, 0.0, 0.5), trial(1, 0.14, 0.2), trial(2, 0.6, 0.0)]).number == 1
    assert choose([trial(0, 0.2, 0.9), trial(1, 0.3, 0.1), trial(2, 0.9, 0.0)]).number == 1


def test_the_rank_correlation_is_that_of_spearman():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(3 / math.sqrt(10))  # 4.5 / sqrt(4.5 * 5)
    assert rank_correlation([1, 2], [3, 3]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=15))
def test_the_rank_correlation_is_that_of_ranks_by_hand(pairs):
    def ranks(values):
        return np.array([sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values])

    one, other = (ranks(side) for side in zip(*pairs, strict=True))
    found = rank_correlation(*map(list, zip(*pairs, strict=True)))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-12)


def test_the_plot_is_a_picture_with_every_trial(tmp_path):
    text = front_svg("a < b", [(0.1, 0.2), (0.3, 0.1), (0.5, 0.5)], [(0.1, 0.2), (0.3, 0.1)], (0.3, 0.1))
    root = ElementTree.fromstring(text)
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 3 + 2 + 1 and "a &lt; b" in text
    assert front_svg("zero", [(0.0, 0.0)], [(0.0, 0.0)], (0.0, 0.0))


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    planted_pipeline().save_pretrained(folder / "base")
    save_concept(CONCEPT, folder / "red.yaml")
    return folder


def test_the_command_prints_one_json_object(folder, tmp_path, capfd):
    pipe = str(folder / "base")
    size = ["--height", "16", "--width", "16", "--frames", "5"]
    call = ["search", pipe, str(folder / "red.yaml"), "-o", str(tmp_path), "--trials", "2", *size]
    assert cli.main([*call, "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert json.loads((tmp_path / "search.json").read_text(encoding="utf-8")) == record
    assert len(record["trials"]) == 2 and record["best"] in record["front"]
    table = _text(record, tmp_path)
    assert table.startswith("no-red: 2 trials on 3 held-out prompts that name it and") and "chosen" in table


def test_the_command_without_optuna_says_what_to_install(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["search", str(folder / "base"), str(folder / "red.yaml"), "-o", str(tmp_path)]) == 1
    assert "pip install 'unlearning-adapters[search]'" in capfd.readouterr().err
