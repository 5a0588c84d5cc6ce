"""Whole pipelines of the family Cosmos forget and remember, through their own call."""

from whole_cosmos import CASES

from whole import Broken, Whole, check_broken, check_whole, each


@each(CASES)
def test_whole(case: Whole, tmp_path):
    check_whole(case, tmp_path)


@each(CASES, Broken)
def test_broken(case: Broken):
    check_broken(case)
