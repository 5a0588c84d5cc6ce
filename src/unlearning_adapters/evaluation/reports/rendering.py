"""`render` fills a template of this folder; the suffix of its name decides how values are escaped.

HTML escapes every value that is not `Markup`. In Markdown, a value stays on its line and in its cell of a table.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import numbers


def render(name: str, **values: Any) -> str:
    """Return a template with its values filled in.

    Args:
        name: Name of the template, such as "report.md".
        values: What it names.
    """
    return _environment(name.endswith(".html")).get_template(name).render(values)


def one_cell(value: object) -> str:
    """Return a value as text that ends neither its line nor its cell of a table in Markdown."""
    return " ".join(str(value).splitlines()).replace("|", "/")


@cache
def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=html,
        finalize=None if html else one_cell,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (numbers.cell, numbers.change_text, numbers.mean, numbers.number, numbers.p_text)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"rate_of": numbers.rate_of, "drift": numbers.drift, "changes": numbers.changes}
    return environment
