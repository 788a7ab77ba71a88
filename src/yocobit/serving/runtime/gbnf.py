"""Context-free grammars of requests, in GBNF or Lark, as grammars of llguidance."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

# A rule `start`, which may have a modifier and a priority; "::=" defines a rule of GBNF.
_LARK = re.compile(r"^\s*(?:%llguidance\b|[?!]?start(?:\.-?\d+)?\s*:(?!:=))", re.MULTILINE)
# Literals, characters and comments of GBNF, in which names have no meaning; or a name.
_NAME = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*|(?P<name>[A-Za-z][\w-]*)(?P<rule>\s*::=)?',
    re.DOTALL,
)
# With four or eight hexadecimal digits; llguidance's translation has \x only.
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def from_gbnf_or_lark(text: str) -> str:
    """Return a grammar of llguidance; ValueError for GBNF that is not valid."""
    text = _unescaped(text)
    if _LARK.search(text):
        return LLMatcher.grammar_from_lark(text)
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(_with_unique_names(text)))
    except RecursionError:
        raise
    except Exception as error:  # the translation's errors have no common type
        raise ValueError(f"not GBNF: {error}") from None


def _unescaped(text: str) -> str:
    """Return a grammar without the escapes that the translation does not know."""

    def character(match: re.Match[str]) -> str:
        if (digits := match[1] or match[2]) is None:
            return match[0]
        code = int(digits, 16)
        return f"\\x{code:02x}" if code < 0x80 else chr(code)

    return _ESCAPE.sub(character, text)


def _with_unique_names(text: str) -> str:
    """Return GBNF whose rules have other names where those of Lark would be the same.

    The translation makes names lower case, with underscores; "root" becomes "start".
    """
    rules = dict.fromkeys(match["name"] for match in _NAME.finditer(text) if match["rule"])
    taken, changed = {"start"}, dict[str, str]()
    for i, name in enumerate(rules):
        found = re.sub(r"([a-z])([A-Z])", r"\1_\2", name.replace("-", "_")).lower()
        if found in taken:
            found = changed[name] = f"rule_{i}_{found}"
        taken.add(found)
    return _NAME.sub(lambda match: _renamed(match, changed), text) if changed else text


def _renamed(match: re.Match[str], changed: Mapping[str, str]) -> str:
    name = match["name"]
    return match[0] if name not in changed else changed[name] + (match["rule"] or "")
