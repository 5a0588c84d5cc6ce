"""Whole pipelines with a T5 run through their own call: CogVideoX, ConsisID, Mochi, Allegro, Latte."""

from whole_t5 import CASES

from whole import check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)
