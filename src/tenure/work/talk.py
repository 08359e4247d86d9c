"""What a brain thought and did in one attempt at a step: its turns, and what is to be done next. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenure.work.thoughts import Ask, CallResult, CallTools, Finish, Propose, Question, Say, Thought, Turn, Wait

YES = frozenset({"yes", "y", "ok", "allow", "approve", "approved", "true"})
SAME_MAX = 4
"""The same call with the same result so often in a row, and the brain is stuck."""
SAME_FAILURE_MAX = 3
PING_PONG_TURNS = 6
SAYINGS_MAX = 3
SAY_NOTE = (
    "You neither used a tool nor said that you are done. Use a tool; or finish, ask a person, or wait, by theirs."
)


def is_yes(answer: str) -> bool:
    return answer.strip().lower() in YES


def call_id(turn: int, index: int) -> str:
    """Of a call within its attempt, for keys and questions."""
    return f"t{turn}.{index}"


def question_id(turn: int) -> str:
    return f"q{turn}"


@dataclass
class Talk:
    turns: list[Turn] = field(default_factory=list[Turn])
    allowed: set[str] = field(default_factory=set[str])
    """Calls (`call_id`) that a person allowed."""
    noted_at: int = 0
    """How many turns there were when the brain was last told that something is wrong."""
    model: int = 0
    """How often another model was chosen."""
    model_failures: int = 0
    """In a row."""
    shrinks: int = 0
    """How often it was too long."""

    # --- what happened -------------------------------------------------------------------------------------------------------
    def thought(self, thought: Thought) -> None:
        match thought.decision:
            case CallTools():
                results = len(thought.decision.calls)
            case Say():
                results = 0
            case _:
                results = 1
        self.turns.append(Turn(thought=thought, results=(None,) * results))
        self.model_failures = 0

    def returned(self, turn: int, index: int, result: CallResult) -> None:
        if turn < len(self.turns) and index < len(self.turns[turn].results):
            results = list(self.turns[turn].results)
            results[index] = result
            self.turns[turn] = self.turns[turn].model_copy(update={"results": tuple(results)})

    def told(self, text: str, *, ok: bool = True) -> None:
        """The answer to the last decision, unless it has one."""
        if self.turns and self.turns[-1].results[:1] == (None,):
            self.returned(len(self.turns) - 1, 0, CallResult(ok=ok, output=text))

    def answered(self, question: Question, answer: str) -> None:
        """By a person."""
        name = question.id.rpartition(":")[2]
        for turn, one in enumerate(self.turns):
            if name == question_id(turn):
                self.returned(turn, 0, CallResult(ok=True, output=answer))
            for index in range(len(one.results)):
                if name == call_id(turn, index):
                    if is_yes(answer):
                        self.allowed.add(name)
                    else:
                        self.returned(
                            turn, index, CallResult(ok=False, output=f"A person did not allow this: {answer}")
                        )

    def feed_back(self, text: str) -> None:
        """What is wrong with what it did: the answer to its `Finish`, or a note after the last turn."""
        if not self.turns:
            return
        self.noted_at = len(self.turns)
        last = self.turns[-1]
        if isinstance(last.thought.decision, Finish) and last.results == (None,):
            self.told(text, ok=False)
        else:
            self.turns[-1] = last.model_copy(update={"note": text})

    # --- what is next --------------------------------------------------------------------------------------------------------
    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    @property
    def pending(self) -> list[int]:
        """The calls of the last turn that have no result."""
        if self.last is None or not isinstance(self.last.thought.decision, CallTools):
            return []
        return [index for index, result in enumerate(self.last.results) if result is None]

    @property
    def open_decision(self) -> Propose | Ask | Wait | Finish | None:
        """The last decision, when it is none about tools and nothing came of it yet."""
        if self.last is None or self.last.results != (None,):
            return None
        decision = self.last.thought.decision
        return decision if isinstance(decision, Propose | Ask | Wait | Finish) else None

    def shown(self) -> tuple[Turn, ...]:
        """As the brain is to see it."""
        return tuple(
            turn.model_copy(update={"note": SAY_NOTE})
            if isinstance(turn.thought.decision, Say) and not turn.note
            else turn
            for turn in self.turns
        )

    def stuck(self) -> str | None:
        """Why it looks as if the brain gets nowhere, by its turns since it was last told."""
        marks = [_mark(turn) for turn in self.turns[self.noted_at :]]
        if len(marks) >= SAYINGS_MAX and all(mark is None for mark in marks[-SAYINGS_MAX:]):
            return f"It only talked, {SAYINGS_MAX} turns in a row."
        last = marks[-1] if marks else None
        if last is None:
            return None
        failed = any(result is not None and not result.ok for result in self.turns[-1].results)
        same = SAME_FAILURE_MAX if failed else SAME_MAX
        if len(marks) >= same and all(mark == last for mark in marks[-same:]):
            return f"It made the same call with the same result {same} times in a row."
        tail = marks[-PING_PONG_TURNS:]
        if (
            len(tail) == PING_PONG_TURNS
            and len(set(tail)) == 2
            and all(a == b for a, b in zip(tail, tail[2:], strict=False))
        ):
            return f"It went back and forth between two calls with the same results, {PING_PONG_TURNS} turns in a row."
        return None


def _mark(turn: Turn) -> str | None:
    """The same for the same calls with the same results; None for no call at all."""
    decision = turn.thought.decision
    match decision:
        case CallTools():
            calls = [(call.tool, sorted(call.arguments.items(), key=str)) for call in decision.calls]
            return repr((calls, [(result.ok, result.output) if result else None for result in turn.results]))
        case Say():
            return None
        case Finish():
            return repr(("finish", [result.output if result else None for result in turn.results]))
        case _:
            return repr((decision.kind, decision.model_dump_json(), [r.output if r else None for r in turn.results]))
