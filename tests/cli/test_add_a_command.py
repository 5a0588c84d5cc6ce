"""A command is added in the two steps that docs/architecture.md tells: a file, and its name in the list."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearning_adapters.cli import commands
from unlearning_adapters.cli import main as cli

Outcome = tuple[int, str, str]
# Step 1: a file in cli/commands with a function that returns a `CommandResult`.
COUNT = '''
"""`unlearn count`: how many sites an adapter edits."""

from unlearning_adapters.cli import options
from unlearning_adapters.cli.command import CommandResult, command


@command("count", "count the sites that an adapter edits")
@options.adapter
def count(adapter: str) -> CommandResult:
    """Count the sites."""
    from unlearning_adapters.adapter.file import inspect_adapter

    sites = len(inspect_adapter(adapter)["sites"])
    print("on its way")
    return CommandResult({"sites": sites}, f"{sites} sites")
'''


@pytest.fixture
def with_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "count.py"
    file.write_text(COUNT.lstrip())
    spec = importlib.util.spec_from_file_location(f"{commands.__name__}.count", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Step 2: the command in `COMMANDS` of cli/main.py.
    monkeypatch.setattr(cli, "unlearn", cli.group((*cli.COMMANDS, module.count)))


def test_a_new_command_has_help_results_json_and_errors(
    with_count: None, tmp_path: Path, unlearn: Callable[..., Outcome]
) -> None:
    import forge

    from unlearning_adapters.adapter.adapter import save_adapter

    file = save_adapter(forge.planted_adapter(forge.small_weights()), tmp_path / "no-red")
    assert "count      count the sites that an adapter edits" in unlearn("--help")[1]
    assert "an adapter file, its folder, or a Hub repository" in unlearn("count", "--help")[1]
    assert unlearn("count", file) == (0, "2 sites\n", "on its way\n")
    code, out, _ = unlearn("count", file, "--json")
    assert (code, json.loads(out)) == (0, {"sites": 2})
    assert unlearn("count")[0] == 2
    code, out, err = unlearn("count", tmp_path / "none")
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("error: No unlearning adapter at")
