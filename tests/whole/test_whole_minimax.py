"""The whole pipeline of MiniMax-H3 runs through its own call."""

from whole_minimax import CASES

from whole import check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)
