"""The table of states and verbs in docs/running.md is what happens: each verb is called in each state."""

import pytest
from states_table import BEGIN, END, PAGE, STATES, VERBS, page_with, row, table


def documented() -> dict[str, list[str]]:
    """The cells of the table on the page, with the names of errors in place of their letters."""
    page = PAGE.read_text(encoding="utf-8")
    block = page.partition(BEGIN)[2].partition(END)[0].strip()
    lines, _, refused = block.partition("\n\n")
    names = dict(part.split(": ") for part in refused.partition(": ")[2].removesuffix(".").split(", "))
    cells = [line.strip("| ").split(" | ") for line in lines.splitlines()[2:]]
    return {first: [names.get(cell, cell).strip("`") for cell in rest] for first, *rest in cells}


def test_the_page_has_all_states_and_verbs():
    rows, page = documented(), PAGE.read_text(encoding="utf-8")
    assert list(rows) == list(STATES) and {len(cells) for cells in rows.values()} == {len(VERBS)}
    assert page_with(table(rows), page) == page
    assert {"yes", "FuseError"} <= {cell for cells in rows.values() for cell in cells}


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_each_verb_does_in_each_state_what_the_page_says(state):
    assert dict(zip(VERBS, row(state), strict=True)) == dict(zip(VERBS, documented()[state], strict=True))
