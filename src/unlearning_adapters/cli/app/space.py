"""Writes a Space for the Hub: the same page on the embedded model, without a token."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unlearning_adapters.errors import ConfigError

GRADIO, PILLOW = "6.31.0", "12.3.0"
APP = '''"""A Space: make a small video model forget, compare, measure and share."""

from unlearning_adapters.cli.app.space import space_page

page = space_page()

if __name__ == "__main__":
    page.launch(**page.unlearning_look)
'''
CARD = f"""---
title: Make a video model forget
emoji: 🫥
colorFrom: indigo
colorTo: gray
sdk: gradio
sdk_version: {GRADIO}
app_file: app.py
pinned: false
license: apache-2.0
short_description: Build and look at unlearning adapters
---

# Make a video model forget

Pick a concept, build an adapter in a second, and see the same prompt and seed without and with it. The model is a small
one that is embedded in the package; nothing is downloaded, and no token is asked for. Each open page has its own
adapters, which are removed when it is closed.

[unlearning-adapters](https://pypi.org/project/unlearning-adapters) makes diffusers video models forget a concept:
without training, and reversible bit for bit. `unlearn app PIPELINE` opens this page for any pipeline on your machine.
"""


def requirements() -> str:
    """Return the requirements of the Space, with this version of the package."""
    try:
        package = f"unlearning-adapters[app]=={version('unlearning-adapters')}"
    except PackageNotFoundError:  # a source tree that is not installed
        package = "unlearning-adapters[app]"
    # Without the pin of Pillow, pip goes back to a Gradio of 2023, which cannot be imported.
    return f"{package}\ngradio=={GRADIO}\npillow=={PILLOW}\n"


def write_space(folder: str | Path) -> list[str]:
    """Write app.py, README.md and requirements.txt, and return their names.

    Args:
        folder: A folder, which is made if it is missing; it must hold none of the three.

    Raises:
        ConfigError: If one of them is there.

    Example:
        >>> write_space("space")
        ['app.py', 'README.md', 'requirements.txt']
    """
    files = {"app.py": APP, "README.md": CARD, "requirements.txt": requirements()}
    target = Path(folder)
    for name in files:
        if (target / name).exists():
            raise ConfigError(f"{target / name} is there already. Choose another folder, or remove it.")
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (target / name).write_text(text, encoding="utf-8")
    return list(files)


def space_page() -> object:
    """Return the page of the Space: the embedded model, without reading files of the machine and without a push."""
    from .serve import import_gradio

    import_gradio()
    from unlearning_adapters.cli.open import SHAPEWORLD, open_pipeline

    from .bench import Bench
    from .page import make_page
    from .session import Sessions

    page: object = make_page(Bench(open_pipeline(SHAPEWORLD), SHAPEWORLD), Sessions(), local=False)
    return page
