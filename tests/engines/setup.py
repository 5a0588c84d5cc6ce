r"""Make the environments in which the tests of this folder run the engines, each with pinned versions.

    python tests/engines/setup.py FOLDER [ENGINE ...] [--source comfyui=PATH] [--source comfyui.gguf=PATH] \
        [--source lightx2v=PATH]

Packages come from PyPI; what PyPI lacks is a copy of the named commit that the call points to. `ENGINES` beside this
file says which. The tests find the folder in the environment variable UNLEARNING_ENGINES.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ENGINES = json.loads((HERE / "engines.json").read_text(encoding="utf-8"))


def make(folder: Path, name: str, sources: dict[str, str]) -> None:
    """Make the environment of one engine, or bring it up to date."""
    wanted, source = ENGINES[name], sources.get(name)
    more = {each: sources.get(f"{name}.{each}") for each in wanted.get("nodes", {})}
    for each, path in more.items():
        if path is None:
            sys.exit(f"Give a copy of {wanted['nodes'][each]} with --source {name}.{each}=PATH.")
    if wanted.get("source") and source is None:
        sys.exit(f"{name} is not on PyPI: give a copy of {wanted['source']} with --source {name}=PATH.")
    place = folder / name
    python = place / "bin" / "python"
    if not python.exists():
        base = wanted.get("python")
        if base is None:
            venv.create(place, with_pip=True)
        else:
            subprocess.run([base, "-m", "venv", place], check=True)
    requirements = HERE / "requirements" / f"{name}.txt"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", requirements], check=True)
    for package in wanted.get("without_dependencies", []):  # whose own dependencies need a GPU
        subprocess.run([*install, "--no-deps", package], check=True)
    facts = {
        "version": wanted["version"],
        "source": None if source is None else str(Path(source).resolve()),
        "nodes": {each: str(Path(path).resolve()) for each, path in more.items()},
    }
    (place / "engine.json").write_text(json.dumps(facts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("engines", nargs="*", default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--source", action="append", default=[], metavar="ENGINE=PATH")
    options = parser.parse_args()
    sources = dict(item.split("=", 1) for item in options.source)
    for name in options.engines:
        print(f"{name} {ENGINES[name]['version']}", flush=True)
        make(options.folder, name, sources)


if __name__ == "__main__":
    main()
