"""What the command line reads from its words, without running the command."""

from typing import Any

from unlearning_adapters.cli.main import unlearn


def parsed(name: str, *words: str) -> dict[str, Any]:
    """Return the values of all arguments and options of a command; wrong usage raises click's errors."""
    return unlearn.commands[name].make_context(name, list(words)).params
