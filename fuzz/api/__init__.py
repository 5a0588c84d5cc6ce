"""Fuzzing of the API: random states of a pipeline, random verbs, random arguments."""

import sys
from pathlib import Path

# The tiny pipelines of the tests are what is run; `tests/support` is on pytest's path, and on this one.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from loopback_hub import served  # noqa: E402

served()  # before huggingface_hub is imported: no sequence can reach another Hub
