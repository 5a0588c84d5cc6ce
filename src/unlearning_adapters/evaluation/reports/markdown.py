"""The report as Markdown: a verdict, then one table of rates with counts and intervals, then the paired tests."""

from collections.abc import Mapping
from typing import Any

from .rendering import render

# Rows of the main table: title, and where the rate is.
ROWS = (
    ("concept shown (of valid clips)", "concept_rate"),
    ("**erased** (valid, known, without the concept)", "erased"),
    ("erased, paraphrases", "paraphrase_erased"),
    ("concept in open prompts", "generic_rate"),
    ("rest of the scene right", "context_kept"),
    ("**neighbours right**", "preservation"),
    ("worst neighbour right", "worst_neighbour"),
    ("valid clips", "valid_rate"),
    ("errors", "error_rate"),
)
TESTS = (
    ("erased", "erased"),
    ("neighbours right", "neighbour_right"),
    ("rest of the scene right", "context_right"),
    ("valid", "valid"),
)


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return a report as Markdown.

    Args:
        data: `Report.data`.
    """
    nearest = data.get("nearest", {})  # older reports have none
    return render("report.md", data=data, arms=list(data["arms"].values()), rows=ROWS, tests=TESTS, nearest=nearest)
