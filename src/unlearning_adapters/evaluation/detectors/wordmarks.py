"""Brand names that are written in a clip: text is read by RapidOCR and compared with a list of words.

It sees wordmarks only, no pictorial logos.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError

from .detector import FRAMES, Detection, Detector, check_count, choose_frames, detector_factory, split_texts
from .loading import load_package

THRESHOLD = 0.5  # confidence of a reading, RapidOCR's own gate
SIDE = 320  # pixels on the longer side at which text is looked for; RapidOCR's own 736 is six times slower
LETTERS_PER_EDIT = 4  # a word of fewer letters must be read without an error

Reading = tuple[str, float]  # a text and its confidence, 0 to 1


@detector_factory
def wordmarks(
    words: str | Iterable[str] = (), edits: float = 1, side: float = SIDE, frames: float = FRAMES, threads: float = 1
) -> Detector:
    """Return the detector of words; its score is the confidence of the best reading of one of them, 0 if none is read.

    Args:
        words: The words or phrases, a list or one text such as "acme|acme cola".
        edits: Largest edit distance (Levenshtein, letters and digits only, any case) of a reading from a word, and
            never more than one edit for each four letters of the word.
        side: Pixels on the longer side at which text is looked for.
        frames: Frames of a clip that are looked at, evenly, 0 for all.
        threads: Threads of the networks, 0 for all cores.

    Raises:
        EvaluationError: If the package is not installed, or there are no words with letters.
    """
    marks = split_texts("the words of wordmarks", words)
    for word in marks:
        if not letters(word):
            raise EvaluationError(f"Expected each word of wordmarks to hold letters or digits, but got {word!r}.")
    most, count = check_count("the edits of wordmarks", edits), check_count("the frames of wordmarks", frames)
    side = check_count("the side of wordmarks", side)
    read, weights = load_reader(side, check_count("the threads of wordmarks", threads))

    def look(clip: Clip) -> Detection:
        best = [match_words(read(frame), marks, most) for frame in choose_frames(clip, count)]
        matches = dict.fromkeys(word for word, _ in best if word)
        return Detection(tuple(score for _, score in best), reason=", ".join(f"reads {word!r}" for word in matches))

    settings = {
        "words": marks, "edits": most, "letters_per_edit": LETTERS_PER_EDIT, "frames": count, "channels": "BGR",
        "side": side, "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights],
    }  # fmt: skip
    return Detector("wordmarks", look, threshold=THRESHOLD, version=version_of("rapidocr"), settings=settings)


def load_reader(side: int = SIDE, threads: int = 1) -> tuple[Any, list[Path]]:
    """Return a function from a frame to its readings, and the weights that it uses.

    Args:
        side: Pixels on the longer side at which text is looked for.
        threads: Threads of the networks, 0 for all cores.
    """
    load_package("onnxruntime", "onnxruntime", "wordmarks")  # rapidocr does not ask for it itself
    package = load_package("rapidocr", "rapidocr", "wordmarks")
    settings = {
        "Global.use_cls": False,  # text that stands on its head is not looked for
        "Global.text_score": 0.0,  # the confidence is the score, and the threshold comes later
        "Global.log_level": "critical",
        "Det.limit_side_len": side,
        "Det.limit_type": "max",
        "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
    }
    engine = package.RapidOCR(params=settings)
    models = Path(str(package.__file__)).parent / "models"

    def read(frame: np.ndarray) -> list[Reading]:
        output = engine(np.ascontiguousarray(frame[..., ::-1]))
        return list(zip(output.txts, map(float, output.scores), strict=True)) if output.txts else []

    return read, sorted(models.glob("*_det_*.onnx")) + sorted(models.glob("*_rec_*.onnx"))


def match_words(readings: Sequence[Reading], words: Sequence[str], edits: int) -> tuple[str, float]:
    """Return the word that was read with the highest confidence, and that confidence; ("", 0) if none was.

    A word may be read in pieces ("ACME", "COLA") or run together ("ACMECOLA"), but not inside of another word.

    Args:
        readings: Texts of one frame in reading order, with confidences.
        words: The words.
        edits: Largest edit distance.
    """
    pieces = [(part, score) for text, score in readings for part in map(letters, text.split()) if part]
    best = ("", 0.0)
    for word in words:
        plain = letters(word)
        allowed = min(edits, len(plain) // LETTERS_PER_EDIT)
        for size in range(1, len(word.split()) + 2):
            for start in range(len(pieces) - size + 1):
                window = pieces[start : start + size]
                score = min(confidence for _, confidence in window)
                if score > best[1] and edit_distance("".join(text for text, _ in window), plain) <= allowed:
                    best = (word, score)
    return best


def letters(text: str) -> str:
    """Return the letters and digits of a text, without case."""
    return re.sub(r"[\W_]", "", text.casefold())


def edit_distance(first: str, second: str) -> int:
    """Return the least number of insertions, deletions and replacements from one text to another (Levenshtein)."""
    row = list(range(len(second) + 1))
    for index, one in enumerate(first, start=1):
        above, row = row, [index]
        for place, other in enumerate(second, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (one != other)))
    return row[-1]
