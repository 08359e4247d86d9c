"""YAML as plain data, with the line of everything: errors can then say where."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from tenure.errors import PlaybookError

FILE_BYTES_MAX = 256 * 1024
NODES_MAX = 20_000
"""With every use of an anchor counted: a few lines of nested aliases cannot become a billion values."""
DEPTH_MAX = 20

Path = tuple[str | int, ...]


@dataclass
class Document:
    """`data` is None for an empty file. `lines` has the line (from 1) and column of every key and list item, by its path."""

    file: str
    data: Any = None
    lines: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])

    def position(self, path: Path) -> tuple[int, int]:
        """Where `path` is, or the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, (1, 1))


def read_document(text: str, file: str) -> Document:
    """Reads one YAML document of plain values. Raises `PlaybookError` for broken YAML, a key given twice, tags that would make
    objects, and files beyond the limits."""
    size = len(text.encode("utf-8", "replace"))
    if size > FILE_BYTES_MAX:
        raise PlaybookError(f"{file}: the playbook has {size} bytes; {FILE_BYTES_MAX} are allowed.")
    if "\x00" in text:
        raise PlaybookError(f"{file}: the playbook contains a NUL byte; is it a text file?")
    document = Document(file)
    try:
        node = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        document.data = _Reader(document).value(node, (), 0) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise _error(file, line, column, f"not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise _error(file, 1, 1, f"not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise _error(file, 1, 1, "nested too deeply") from None
    return document


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._left = NODES_MAX
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._left -= 1
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self._document.lines.setdefault(path, (line, column))
        if self._left < 0 or depth > DEPTH_MAX:
            raise _error(self._document.file, line, column, f"more than {NODES_MAX} values, or nested too deeply")
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path, depth)
            case yaml.SequenceNode():
                return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
            case _:
                return self._scalar(node, line, column)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(self._document.file, line, column, "a key must be a word")
            if key_node.value == "<<":
                raise _error(self._document.file, line, column, "merge keys (<<) are not supported; repeat the fields")
            if key_node.value in mapping:
                raise _error(self._document.file, line, column, f"the key {key_node.value!r} is given twice")
            # The key's own text: `on:` and `2012:` stay what they look like.
            self._document.lines[*path, key_node.value] = (line, column)
            mapping[key_node.value] = self.value(value_node, (*path, key_node.value), depth + 1)
        return mapping

    def _scalar(self, node: yaml.Node, line: int, column: int) -> Any:
        if node.tag not in _PLAIN_TAGS:
            return node.value if node.tag in _TEXT_TAGS else self._refuse(node, line, column)
        try:
            value = cast("Any", self._scalars.construct_object(node))  # pyright: ignore[reportUnknownMemberType]
        except ValueError:
            raise _error(self._document.file, line, column, f"{node.value!r} is not a valid value") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(self._document.file, line, column, f"{node.value!r} is not a number")
        return value

    def _refuse(self, node: yaml.Node, line: int, column: int) -> Any:
        raise _error(self._document.file, line, column, f"the tag {node.tag!r} is not allowed")


_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
_TEXT_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("timestamp", "value"))
"""Things that YAML 1.1 reads into dates and the like: they stay text."""


def _error(file: str, line: int, column: int, problem: str) -> PlaybookError:
    details = {"errors": [{"file": file, "line": line, "column": column, "field": "", "message": problem}]}
    return PlaybookError(f"{file}:{line}: {problem}.", details=details)
