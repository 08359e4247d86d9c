"""Reading SQL just far enough to see whether it opens or closes transactions. Pure."""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<comment>/\*)
  | (?P<escaped>[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\\?\Z))
  | (?P<string>'[^']*(?:''[^']*)*(?:'|\Z))
  | (?P<quoted>"[^"]*(?:""[^"]*)*(?:"|\Z))
  | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$)
  | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)
  | (?P<semicolon>;)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_CONTROL = frozenset({"abort", "begin", "commit", "end", "rollback", "savepoint", "release", "start", "prepare"})


def transaction_control(text: str) -> str | None:
    """The first word of the first statement in `text` that controls a transaction ("COMMIT", "BEGIN", …); None without.

    Follows PostgreSQL's lexical rules with `standard_conforming_strings` on: strings, dollar quotes, nested comments,
    and the `BEGIN ATOMIC … END` bodies of SQL functions, whose semicolons end no statement.
    """
    words: list[str] = []
    depth = 0
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None, "every character is at least `other`"
        at = token.end()
        kind = token.lastgroup
        if kind == "comment":
            at = _comment_end(text, at)
        elif kind == "dollar":
            end = text.find(token.group(), at)
            at = len(text) if end < 0 else end + len(token.group())
        elif kind == "semicolon" and depth == 0:
            words = []
        elif kind == "word":
            word = token.group().lower()
            if words[:1] == ["create"]:
                depth = _body_depth(word, words, depth)
            words.append(word)
            if _controls(words):
                return words[0].upper()
            if len(words) == 1 and word != "create" and word not in _CONTROL:
                words.append("")  # the rest of this statement does not matter
        elif kind not in ("space", "semicolon") and not words:
            words.append("")
    return None


def _controls(words: list[str]) -> bool:
    first = words[0]
    if first not in _CONTROL:
        return False
    if first == "prepare":  # PREPARE name AS … is none; PREPARE TRANSACTION is
        return words[1:2] == ["transaction"]
    return len(words) == 1


def _body_depth(word: str, words: list[str], depth: int) -> int:
    if word == "atomic" and words[-1] == "begin":
        return depth + 1
    if depth and word == "case":
        return depth + 1
    if depth and word == "end":
        return depth - 1
    return depth


def _comment_end(text: str, at: int) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return len(text)
        depth += 1 if edge.group() == "/*" else -1
        at = edge.end()
    return at


def flaw_of_part(text: str) -> str | None:
    """Why `text` cannot stand in brackets inside a statement, such as a condition after WHERE, without getting out of its place;
    None when it can. What has a ';' outside of its strings, brackets that do not match, or a string, name or comment without an
    end cannot."""
    open_brackets: list[str] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None, "every character is at least `other`"
        at, kind, word = token.end(), token.lastgroup, token.group()
        if kind == "comment":
            at = _comment_end(text, at)
            if not text.endswith("*/", 0, at):
                return "it has a comment without an end"
        elif kind == "dollar":
            end = text.find(word, at)
            if end < 0:
                return "it has a text without an end"
            at = end + len(word)
        elif kind == "semicolon":
            return "it has a ';' in it"
        elif kind in ("string", "escaped", "quoted") and not _is_closed(word):
            return "it has a text or name without an end"
        elif kind == "other" and (flaw := _bracket(word, open_brackets)):
            return flaw
    return f"it has a {open_brackets[-1]!r} that nothing closes" if open_brackets else None


_CLOSES = {")": "(", "]": "["}


def _bracket(character: str, open_brackets: list[str]) -> str | None:
    if character in _CLOSES.values():
        open_brackets.append(character)
    elif character in _CLOSES and (not open_brackets or open_brackets.pop() != _CLOSES[character]):
        return f"it has a {character!r} that closes nothing"
    return None


def _is_closed(token: str) -> bool:
    """Of a string or quoted name as `_TOKEN` takes it: it stops early only at the end of the text."""
    mark = token.lstrip("eE")[0]
    body = token[token.index(mark) + 1 :]
    if not body.endswith(mark):
        return False
    if token[0] in "eE":
        body = re.sub(r"\\.", "", body, flags=re.DOTALL)
        if not body.endswith(mark):
            return False
    return (len(body) - len(body.rstrip(mark))) % 2 == 1
