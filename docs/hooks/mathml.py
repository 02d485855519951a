"""MkDocs hook: LaTeX between dollar signs becomes MathML at build time; a page needs no script and no network."""

import html
import re

from math_core import LatexToMathML

CONVERTER = LatexToMathML()
EQUATION = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Convert the equations that `pymdownx.arithmatex` has marked; LaTeX with an error stops the build."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    block = match[1] == "div"
    mathml = CONVERTER.convert_with_local_state(html.unescape(match[2]).strip(), displaystyle=block)
    return f'<div class="equation">{mathml}</div>' if block else mathml
