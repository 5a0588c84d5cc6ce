import ast
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fresh import Copy, in_copy

import unlearning_adapters
from unlearning_adapters import errors
from unlearning_adapters.runtime import verbs

HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "yaml")
LOADED = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_package_imports_nothing_heavy():
    assert run("import unlearning_adapters\n" + LOADED) == "[]"


def test_the_test_above_can_fail():
    assert "torch" in run("import unlearning_adapters.adapter.adapter\n" + LOADED)


def test_listing_the_names_imports_nothing_heavy():
    code = "import unlearning_adapters as ua; assert 'build_adapter' in dir(ua); ua.__version__\n" + LOADED
    assert run(code) == "[]"


ORDERS = {
    "package first": "import unlearning_adapters; from diffusers import WanPipeline",
    "diffusers first": "from diffusers import WanPipeline; import unlearning_adapters",
    "only the module of the base class first": (
        "import diffusers.pipelines.pipeline_utils; import unlearning_adapters; from diffusers import WanPipeline"
    ),
    "verbs first": (
        "from unlearning_adapters.runtime.verbs import load_unlearning_adapter; from diffusers import WanPipeline"
    ),
    "a public name first": "from unlearning_adapters import build_adapter; from diffusers import WanPipeline",
}


ALONE = "from diffusers import WanPipeline; print(hasattr(WanPipeline, 'load_unlearning_adapter'))"
VERBS_ARE_THERE = """
from diffusers import ModularPipeline
from unlearning_adapters.runtime.verbs import VERBS
print(all(getattr(kind, verb.__name__) is verb for kind in (WanPipeline, ModularPipeline) for verb in VERBS))
"""
PUSH = "from unlearning_adapters import UnlearningAdapter as adapter; print(adapter.push_to_hub.__name__)"
PUSHING = ("hub.hub", "adapter.adapter", "hub.card")
WRAPPED = "import unlearning_adapters as ua; print(hasattr(ua.DenoiserPipeline, 'load_unlearning_adapter'))"


def test_pipelines_and_adapters_have_their_methods_whatever_is_imported_first():
    programs = {order: f"{code}\n{VERBS_ARE_THERE}" for order, code in ORDERS.items()}
    programs |= {name: f"import unlearning_adapters.{name}; {PUSH}" for name in PUSHING}
    programs |= {"a pipeline of any module": WRAPPED, "diffusers alone": ALONE}
    seen = {name: in_copy("-c", program) for name, program in programs.items()}
    expected = {**dict.fromkeys(programs, "True"), **dict.fromkeys(PUSHING, "push_adapter"), "diffusers alone": "False"}
    assert seen == expected


def test_the_copies_of_the_test_above_know_neither_and_their_failures_are_seen(tmp_path):
    known = "import sys; print(sorted({'diffusers', 'unlearning_adapters', 'torch'} & set(sys.modules)), *sys.argv)"
    assert in_copy("-c", known, "a word") == "['torch'] -c a word"
    (tmp_path / "known.py").write_text(f"import other; {known}")
    (tmp_path / "other.py").touch()
    assert in_copy(tmp_path / "known.py") == f"['torch'] {tmp_path / 'known.py'}"
    assert in_copy("-c", "import os; print(os.environ['A'], os.getcwd())", cwd=tmp_path, A="b") == f"b {tmp_path}"
    for code in ("raise ValueError('wrong')", "import sys; sys.exit('wrong')"):
        with pytest.raises(AssertionError, match="wrong"):
            in_copy("-c", code)
    copy = Copy("-c", "import time; time.sleep(600)")
    assert copy.poll() is None
    copy.kill()
    assert copy.communicate()[0] == -signal.SIGKILL


def test_every_public_name_is_there_and_is_what_it_says():
    for name in unlearning_adapters.__all__:
        assert getattr(unlearning_adapters, name) is not None
        assert name in dir(unlearning_adapters)
    public = {verb.__name__ for verb in verbs.VERBS} | {name for name in vars(errors) if name.endswith("Error")}
    assert public <= set(unlearning_adapters.__all__)
    assert sorted(unlearning_adapters.__all__) == sorted(set(unlearning_adapters.__all__))


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING give each name from the module that gives it at run time."""
    tree = ast.parse(Path(unlearning_adapters.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == unlearning_adapters._MODULE_OF
    assert {*seen, "__version__"} == set(unlearning_adapters.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'unlearning_adapters' has no attribute 'unlearn_everything'"):
        unlearning_adapters.unlearn_everything  # noqa: B018
