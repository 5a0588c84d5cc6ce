"""`unlearn concepts lint`: what is doubtful in concepts, one line each."""

from argparse import ArgumentParser, Namespace

from unlearning_adapters.errors import UnlearningError

from .commands import Report


def lint_options(command: ArgumentParser) -> None:
    """Add the options of `unlearn concepts lint`."""
    text = "a shipped concept, or a .yaml or .jsonl file (default: all that are shipped)"
    command.add_argument("concepts", metavar="NAME", nargs="*", help=text)


def lint_concepts(options: Namespace) -> Report:
    """Check concepts; the exit code is 1 if one of them has an error, or cannot be read."""
    from unlearning_adapters.concepts.concept import list_concepts, load_concept
    from unlearning_adapters.concepts.lint import Finding, lint_concept

    checked, lines, errors = [], [], 0
    for source in options.concepts or list_concepts():
        try:
            concept = load_concept(source)
            name, found = concept.name, lint_concept(concept)
        except UnlearningError as error:
            name, found = str(source), [Finding(True, str(error))]
        errors += sum(item.error for item in found)
        listed = [{"error": item.error, "text": item.text} for item in found]
        checked.append({"name": name, "findings": listed})
        lines += [f"{name}: {item}" for item in found] or [f"{name}: nothing to say"]
    return Report({"concepts": checked, "errors": errors}, "\n".join(lines), code=int(errors > 0))
