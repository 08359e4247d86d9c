"""What is wrong with a playbook, collected: a person mends everything in one go."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from tenure.brains.playbook.document import Document, Path
from tenure.errors import PlaybookError

SHOWN_MAX = 20
REFERENCE_HINT = "docs/playbooks.md has every field, with examples."


@dataclass
class Problems:
    file: str
    document: Document
    found: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])

    def add(self, path: Path, message: str) -> None:
        self.found.append((path, message))

    def stop_if_any(self) -> None:
        """Raises `PlaybookError` with all that was found, in the order of the file."""
        if not self.found:
            return
        entries = sorted({(*self.document.position(path), field_name(path), message) for path, message in self.found})
        shown = [
            f"{self.file}:{line}: {name + ': ' if name else ''}{message}."
            for line, _, name, message in entries[:SHOWN_MAX]
        ]
        if len(entries) > SHOWN_MAX:
            shown.append(f"… and {len(entries) - SHOWN_MAX} more.")
        errors = [
            {"file": self.file, "line": line, "column": column, "field": name, "message": message}
            for line, column, name, message in entries[:SHOWN_MAX]
        ]
        raise PlaybookError("\n".join(shown), hint=REFERENCE_HINT, details={"errors": errors})


def field_name(path: Path) -> str:
    """`steps[3].retry.delay`"""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean 'load'?)`, or nothing when no word is close."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
