"""The front of a search as a page, and the choice of a trial."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_wan_pipeline
from tiny_red import CONCEPT

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.cli.front_page import chosen_trial, write_front_page
from unlearning_adapters.concepts.concept import Concept, save_concept
from unlearning_adapters.errors import ConfigError

Outcome = tuple[int, str, str]
RED = Concept.from_dict(CONCEPT)


def test_the_page_shows_the_base_and_each_trial_and_loads_nothing(tmp_path: Path) -> None:
    record = {
        "concept": "no-<red>",
        "best": 3,
        "trials": [{"number": 3, "leftover": 0.1, "drift": 0.02}, {"number": 7, "leftover": 0.3, "drift": 0.01}],
        "clips": {
            "prompts": ["a 'red' car", "a dog"],
            "base": ["clips/base-1.mp4", "clips/base-2.mp4"],
            "front": [{"number": n, "files": [f"clips/trial-{n}-1.mp4", f"clips/trial-{n}-2.mp4"]} for n in (3, 7)],
        },
    }
    text = write_front_page(tmp_path, record).read_text()
    assert text.count("<video") == 6 and "trial 3: left 0.10, drift 0.020, chosen" in text
    assert "no-&lt;red&gt;" in text and "<red>" not in text and "a &#x27;red&#x27; car" in text
    assert "http:" not in text and "https:" not in text


def test_only_trials_of_the_front_can_be_chosen() -> None:
    front = [SimpleNamespace(number=3), SimpleNamespace(number=7)]
    assert chosen_trial(front, 7) is front[1]
    with pytest.raises(ConfigError, match=r"The front has no trial 4. It has: 3, 7."):
        chosen_trial(front, 4)


def test_a_search_is_looked_at_and_another_trial_chosen(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    tiny_wan_pipeline().save_pretrained(tmp_path / "tiny")
    save_concept(RED, tmp_path / "red.yaml")
    words = ("search", tmp_path / "tiny", tmp_path / "red.yaml", "-o", tmp_path / "found", "--trials", "4")
    words += ("--one-strength", "--height", "16", "--width", "16", "--frames", "5")
    assert unlearn(*words, "--look")[0] == 0
    record = json.loads((tmp_path / "found/search.json").read_text())
    shown = [item["number"] for item in record["clips"]["front"]]
    assert all((tmp_path / "found" / file).is_file() for item in record["clips"]["front"] for file in item["files"])
    assert (tmp_path / "found/front.html").read_text().count("<video") == 2 * (1 + len(shown))
    number = record["front"][-1]
    assert number != record["best"]
    assert unlearn(*words, "--choose", number)[0] == 0
    again = json.loads((tmp_path / "found/search.json").read_text())
    assert again["best"] == number
    (trial,) = (trial for trial in again["trials"] if trial["number"] == number)
    assert load_adapter(tmp_path / "found/best").strength == pytest.approx(trial["settings"]["strength"])
    made = json.loads((tmp_path / "found/reproduce.json").read_text())
    assert made["results"]["best"]["number"] == number
