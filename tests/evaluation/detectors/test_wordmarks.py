"""Wordmarks: edit distances, words in pieces, and texts that are drawn and read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_runs import scene
from PIL import Image, ImageDraw, ImageFont

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import load_detector
from unlearning_adapters.evaluation.detectors.floor import measure_floor
from unlearning_adapters.evaluation.detectors.wordmarks import (
    edit_distance,
    letters,
    load_reader,
    match_words,
    wordmarks,
)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("acme", "", 4), ("acme", "acme", 0), ("acme", "acne", 1), ("acme", "cme", 1), ("acme", "macme", 1),
     ("kitten", "sitting", 3), ("flaw", "lawn", 2)],
)  # fmt: skip
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_letters_leave_out_case_and_marks() -> None:
    assert letters("A.C-M E_2!") == "acme2" and letters("Ämter") == "ämter" and letters("...") == ""


def test_words_match_whole_within_the_distance() -> None:
    word = ["Acme Cola"]
    assert match_words([("ACME COLA", 0.9)], word, 0) == ("Acme Cola", 0.9)
    assert match_words([("drink", 0.9), ("ACME", 0.8), ("COLA", 0.7)], word, 0) == ("Acme Cola", 0.7)
    assert match_words([("ACMECOLA!", 0.6)], word, 0) == ("Acme Cola", 0.6)
    assert match_words([("AC ME COLA", 0.6)], word, 0) == ("Acme Cola", 0.6)
    assert match_words([("ACNE COLA", 0.9)], word, 0) == ("", 0.0)
    assert match_words([("ACNE COLA", 0.9)], word, 1) == ("Acme Cola", 0.9)
    assert match_words([("ACNE COLE", 0.9)], word, 1) == ("", 0.0)
    assert match_words([("COLA", 0.9)], word, 2) == ("", 0.0)
    assert match_words([("beacon", 0.9)], ["con"], 0) == ("", 0.0)
    assert match_words([], word, 1) == ("", 0.0)


def test_short_words_must_be_read_without_an_error() -> None:
    assert match_words([("oak", 0.9)], ["oat"], 1) == ("", 0.0)
    assert match_words([("acne", 0.9)], ["acme"], 3) == ("acme", 0.9)
    assert match_words([("abne", 0.9)], ["acme"], 3) == ("", 0.0)


def test_the_best_reading_counts() -> None:
    readings = [("acne", 0.4), ("acme", 0.8), ("zeta", 0.6)]
    assert match_words(readings, ["zeta", "acme"], 1) == ("acme", 0.8)


def drawn(text: str, frames: int = 2) -> Clip:
    """A sign with a text on it; the last frame is empty."""
    picture = Image.new("RGB", (320, 160), (40, 90, 160))
    blank = np.asarray(picture)
    ImageDraw.Draw(picture).text((30, 50), text, (255, 255, 255), ImageFont.load_default(36))
    return np.stack([np.asarray(picture)] * (frames - 1) + [blank])


def test_a_wordmark_is_read() -> None:
    detector = load_detector("wordmarks?words=zeta|acme cola")
    found = detector(drawn("ACME COLA"))
    assert found.scores[0] > 0.9 and found.scores[1] == 0.0
    assert found.reason == "reads 'acme cola'" and detector.sees_concept(found, {}) is True
    assert detector(drawn("ACNE COLA")).scores[0] > 0.5
    for text, edits in (("ACNE COLA", 0), ("QUIET HOUSE", 1)):
        other = wordmarks(["acme cola"], edits=edits)(drawn(text))
        assert other.scores == (0.0, 0.0) and other.reason == ""


def test_frames_are_read_as_the_package_reads_its_files(tmp_path: Path) -> None:
    from rapidocr import RapidOCR

    picture = Image.new("RGB", (200, 80), (200, 40, 40))
    ImageDraw.Draw(picture).text((10, 20), "ACME COLA", (40, 60, 190), ImageFont.load_default(28))
    picture.save(tmp_path / "sign.png")
    settings = {"Global.use_cls": False, "Det.limit_side_len": 320, "Det.limit_type": "max"}
    engine = RapidOCR(params={**settings, "Global.log_level": "critical"})
    (expected,) = engine(str(tmp_path / "sign.png")).scores
    read, _ = load_reader()
    ((text, score),) = read(np.asarray(picture))
    ((_, swapped),) = read(np.asarray(picture)[..., ::-1])
    assert letters(text) == "acmecola" and score == pytest.approx(expected, abs=1e-6)
    assert swapped != pytest.approx(expected, abs=1e-6)


def test_nothing_is_read_on_shapes() -> None:
    detector = wordmarks(["acme", "zeta cola"], frames=4)
    floor = measure_floor(detector, [scene({"colour": "red"}), scene({"shape": "cross", "background": "white"})])
    assert (floor.clips.hits, floor.clips.count, floor.frames.count, floor.errors) == (0, 2, 8, 0)
    settings = detector.describe()["settings"]
    assert (settings["edits"], settings["channels"], settings["side"]) == (1, "BGR", 320)
    assert [len(one) for one in settings["sha256"]] == [64, 64] and detector.version


@pytest.mark.parametrize("words", ["", "acme||zeta", [], "acme|..."])
def test_words_need_letters(words: Any) -> None:
    with pytest.raises(EvaluationError, match="words of wordmarks|each word of wordmarks"):
        wordmarks(words)
