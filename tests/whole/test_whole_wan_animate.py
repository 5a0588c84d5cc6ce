"""Whole pipelines of Wan-Animate 2 forget and remember, through their own call."""

from whole_wan_animate import CASES

from whole import Whole, check_whole, each


@each(CASES)
def test_whole(case: Whole, tmp_path):
    check_whole(case, tmp_path)
