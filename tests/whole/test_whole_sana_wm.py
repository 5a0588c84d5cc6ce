"""The whole pipeline of SANA-WM runs through its own call."""

from whole_sana_wm import CASES

from whole import check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)
