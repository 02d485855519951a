"""Griffe extension: a bare `>>>` block of a docstring is rendered as its `Examples:` section."""

import re
from typing import Any

import griffe

BARE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Gives each block of unindented doctest lines the section heading that the Google style asks for."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of every class, function, attribute and module."""
        if obj.docstring is not None:
            obj.docstring.value = BARE.sub(_section, obj.docstring.value)


def _section(match: re.Match[str]) -> str:
    return "Examples:\n" + "\n".join(f"    {line}" for line in match[0].splitlines())
