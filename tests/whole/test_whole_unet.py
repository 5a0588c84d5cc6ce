"""The whole pipelines around a UNet run through their own call."""

from whole_unet import CASES

from whole import check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)
