"""The whole pipelines whose prompts are read by a language model run through their own call."""

from whole_llm import CASES

from whole import Broken, check_broken, check_whole, each


@each(CASES)
def test_whole_pipeline(case, tmp_path):
    check_whole(case, tmp_path)


@each(CASES, Broken)
def test_broken_pipeline(case):
    check_broken(case)
