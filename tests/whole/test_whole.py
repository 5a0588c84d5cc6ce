"""Every tiny whole pipeline of tests/support/cases forgets and remembers through its own call."""

import pytest
from pipeline_table import cases

from whole import Broken, Whole, check_broken, check_whole


@pytest.mark.parametrize("case", [case for case in cases() if isinstance(case, Whole)], ids=str)
def test_whole(case: Whole, tmp_path):
    check_whole(case, tmp_path)


@pytest.mark.parametrize("case", [case for case in cases() if isinstance(case, Broken)], ids=str)
def test_broken(case: Broken):
    check_broken(case)
