"""`unlearn concepts`: list, show, start and check concepts."""

from pathlib import Path

import click

from unlearning_adapters.cli.command import SETTINGS, CommandResult, InOrder, as_json, command, printing
from unlearning_adapters.cli.options import output
from unlearning_adapters.errors import ConceptError, UnlearningError

SUMMARY = "list the shipped concepts, show or check one, or start a new one"


@click.group("concepts", cls=InOrder, invoke_without_command=True, short_help=SUMMARY, context_settings=SETTINGS)
@as_json
@click.pass_context
def concepts(context: click.Context, as_json: bool) -> int:
    """List the shipped concepts, show or check one, or start a new one. Without an action, it lists.

    Not in the list: castworld-VALUE, for any of CastWorld's characters (castworld-otto), emblems (castworld-star),
    things (castworld-hat), motions (castworld-left) and styles (castworld-night).
    """
    return 0 if context.invoked_subcommand else printing(_listed)(as_json=as_json)


def _listed() -> CommandResult:
    from unlearning_adapters.concepts.concept import list_concepts, load_concept

    shipped = [load_concept(name) for name in list_concepts()]
    width = max(len(concept.name) for concept in shipped)
    rows = [
        {"name": concept.name, "description": concept.description, "pairs": len(concept.pairs)} for concept in shipped
    ]
    return CommandResult({"concepts": rows}, "\n".join(f"{each.name:<{width}}  {each.description}" for each in shipped))


@command("show", "show the pairs of a concept")
@click.argument("name", metavar="NAME", help="a shipped concept, or a .yaml or .jsonl file")
def show(name: str) -> CommandResult:
    """Show the pairs of a concept."""
    from unlearning_adapters.concepts.concept import load_concept

    concept = load_concept(name)
    lines = [": ".join(part for part in (concept.name, concept.description) if part), ""]
    for pair in concept.pairs:
        lines += [f"  unsafe  {pair.shown('unsafe')}", f"  safe    {pair.shown('safe')}", ""]
    parts = ("pairs", "neutral", "evaluation", "neighbours")
    lines.append(", ".join(f"{len(getattr(concept, part))} {part}" for part in parts))
    return CommandResult(concept.to_dict(), "\n".join(lines))


@command("new", "write a commented template for a new concept")
@click.argument("name", metavar="NAME", help="name of the concept")
@output("FILE", "the file (default: NAME.yaml)", required=False)
def new(name: str, output: str | None) -> CommandResult:
    """Write the template of a concept file."""
    from unlearning_adapters.concepts.concept import concept_template

    text, path = concept_template(name), Path(output or f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConceptError(
            f"{path} exists already and was not changed. Choose another name, or another file with -o."
        ) from None
    next_step = f"write your pairs in it, then `unlearn build PIPELINE {path} -o DIR`"
    return CommandResult({"file": str(path)}, f"{path}: {next_step}")


@command("lint", "check concepts: one line for each doubt")
@click.argument(
    "names", metavar="[NAME]...", nargs=-1, help="a shipped concept, or a .yaml or .jsonl file (default: all shipped)"
)
def lint(names: tuple[str, ...]) -> CommandResult:
    """Check concepts; the exit code is 1 if one of them has an error, or cannot be read."""
    from unlearning_adapters.concepts.concept import list_concepts, load_concept
    from unlearning_adapters.concepts.lint import Finding, lint_concept

    results, lines, errors = [], [], 0
    for source in names or list_concepts():
        try:
            concept = load_concept(source)
            name, findings = concept.name, lint_concept(concept)
        except UnlearningError as error:
            name, findings = str(source), [Finding(True, str(error))]
        errors += sum(finding.error for finding in findings)
        rows = [{"error": finding.error, "text": finding.text} for finding in findings]
        results.append({"name": name, "findings": rows})
        lines += [f"{name}: {finding}" for finding in findings] or [f"{name}: nothing to say"]
    return CommandResult({"concepts": results, "errors": errors}, "\n".join(lines), code=int(errors > 0))


for action in (command("list", "list the shipped concepts (the default)")(_listed), show, new, lint):
    concepts.add_command(action)
