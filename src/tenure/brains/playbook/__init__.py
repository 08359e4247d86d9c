"""The playbook brain: a plan that a person wrote, in the shape of a CI file. See `schema.py` for what it may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenure.brains.playbook.compile import compile_playbook
from tenure.brains.playbook.document import read_document
from tenure.brains.playbook.problems import Problems
from tenure.brains.playbook.schema import Playbook, json_schema, validate
from tenure.work.plan import Plan

__all__ = ["Playbook", "PlaybookBrain", "json_schema", "parse"]


def parse(text: str, file: str) -> Playbook:
    """The playbook in `text`; `file` is what errors call it. Raises `PlaybookError`."""
    document = read_document(text, file)
    return validate(document, Problems(file, document))


class PlaybookBrain:
    """A `Brain` that reads its plan. Needs no model and no office."""

    name = "playbook"

    def __init__(self, text: str, file: str = "playbook") -> None:
        self._text, self._file = text, file

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        """Raises `PlaybookError`, which names file, line and field, and `InvalidArgument` for inputs that the playbook does not
        know or misses."""
        document = read_document(self._text, self._file)
        problems = Problems(self._file, document)
        return compile_playbook(validate(document, problems), inputs, problems)
