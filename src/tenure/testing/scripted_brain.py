"""A thinker that follows a script, for tests of what the engine makes of thoughts.

The script says, for each node, what is decided at each turn. Which turn it is, is told by the task alone, as it has to be for
any thinker: so a worker may die between any two thoughts, and the next one's thinker goes on in the script.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenure.brains.base import Program, Task, Thinker
from tenure.errors import UsageError
from tenure.work.thoughts import BrainSettings, Decision, Thought, Usage
from tenure.work.toolbox import Toolbox

Entry = Decision | Thought | Exception | Callable[[Task], Decision]
"""A callable may look at the task, and assert what it finds there."""


class OffScript(UsageError):
    code = "off_script"


def digest_of(task: Task) -> str:
    """Of what was decided and what came of it: the same for the same conversation, whoever tells it and however long it took."""
    exclude = {"thought": {"memory"}, "results": {"__all__": {"duration_s"}}}
    told = json.dumps([turn.model_dump(mode="json", exclude=exclude) for turn in task.turns], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass
class Again:
    """Raises each of `errors` once, in this process, then decides."""

    errors: list[Exception]
    then: Entry


@dataclass
class ScriptedThinker:
    """`script[node][turn]`. `log`: a file that gets a line `node turn digest` for every thought, before it is given;
    the digest is of the conversation that it was asked with."""

    script: Mapping[str, Sequence[Entry | Again]]
    log: Path | None = None
    usage: Usage = field(default_factory=lambda: Usage(input_tokens=100, output_tokens=10, cost_usd=0.01))
    asked: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])
    """(node, turn, model) of each time it was asked, in order."""
    tasks: list[Task] = field(default_factory=list[Task])

    async def think(self, task: Task) -> Thought:
        turn = len(task.turns)
        self.asked.append((task.node, turn, task.model))
        self.tasks.append(task)
        entries = self.script.get(task.node, ())
        if turn >= len(entries):
            raise OffScript(f"The script has no turn {turn} of {task.node}.")
        return self._thought(entries[turn], task)

    def _thought(self, entry: Entry | Again, task: Task) -> Thought:
        if isinstance(entry, Again):
            if entry.errors:
                raise entry.errors.pop(0)
            return self._thought(entry.then, task)
        if isinstance(entry, Exception):
            raise entry
        if isinstance(entry, Thought):
            thought = entry
        else:
            decision = entry(task) if callable(entry) else entry
            thought = Thought(decision=decision, usage=self.usage)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{task.node} {len(task.turns)} {digest_of(task)}\n")
        return thought.model_copy(update={"model": task.model})

    def assert_complete(self) -> None:
        """Every line of the script was wanted, and nothing that is not in it."""
        wanted = {(node, turn) for node, entries in self.script.items() for turn in range(len(entries))}
        asked = {(node, turn) for node, turn, _ in self.asked}
        assert asked == wanted, (
            f"never asked for: {sorted(wanted - asked)}; not in the script: {sorted(asked - wanted)}"
        )

    @classmethod
    def from_file(cls, file: Path, log: Path | None = None) -> ScriptedThinker:
        """From JSON: `{node: [decision, …]}`."""
        script = json.loads(file.read_text())
        return cls(
            {
                node: [Thought.model_validate({"decision": decision}).decision for decision in decisions]
                for node, decisions in script.items()
            },
            log,
        )


@dataclass(frozen=True)
class GivenMinds:
    """`Minds` that are the same for whatever settings."""

    the_thinker: Thinker | None = None
    toolbox: Toolbox | None = None
    the_program: Program | None = None

    def thinker(self, settings: BrainSettings) -> Thinker:
        assert self.the_thinker is not None, "no thinker was given"
        return self.the_thinker

    def program(self, settings: BrainSettings) -> Program:
        assert self.the_program is not None, "no program was given"
        return self.the_program

    @property
    def tools(self) -> Toolbox:
        assert self.toolbox is not None, "no tools were given"
        return self.toolbox
