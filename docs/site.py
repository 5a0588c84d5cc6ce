"""What mkdocs cannot do alone: pages from files beside this folder, and links to files that the site does not hold."""

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie at the root of the repository."""
    for page, source in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn each relative link, as GitHub reads it, into one of the site, or into the path of a repository's file."""
    here = page.file.src_uri
    source = ROOT_PAGES.get(here, f"docs/{here}")
    on_site = {f"docs/{file.src_uri}": file.src_uri for file in files}
    on_site |= {source: page for page, source in ROOT_PAGES.items()}

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if path in on_site:
            local = posixpath.relpath(on_site[path], posixpath.dirname(here) or ".")
            return f"[{text}]({local}{anchor and '#' + anchor})"
        return f"`{path}`" if text.strip("`/") in path else f"{text} (`{path}`)"

    return LINK.sub(replace, markdown)


class Examples(Extension):
    """Read the section `Example:` of a docstring as griffe reads `Examples:`, so that it is shown as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)
