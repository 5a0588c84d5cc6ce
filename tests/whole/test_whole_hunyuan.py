"""The whole pipelines of HunyuanVideo run through their own call."""

from whole_hunyuan import CASES

from whole import check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)
