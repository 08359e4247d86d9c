"""Whether a question can be answered: it is open, it is still time, and the answer is one. Pure."""

from __future__ import annotations

from datetime import datetime

from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.work.state import RunState
from tenure.work.talk import is_yes

NO = frozenset({"no", "n", "deny", "denied", "false", "never"})
LIST_HINT = "`tenure questions` lists those that are open."
QUOTED_CHARS_MAX = 200


def check_open(state: RunState, run_state: str, question: str, answer: str, now: datetime) -> None:
    """Returns when `answer` can be written as the answer to `question`. Raises `NotFound`, `Conflict`, `InvalidArgument`."""
    shown = question[:QUOTED_CHARS_MAX]
    if question in state.answered:
        said, whom = state.answered[question]
        raise Conflict(
            f"{shown} was answered already, by {whom or 'nobody in time'}: {said[:QUOTED_CHARS_MAX]}", hint=LIST_HINT
        )
    if question not in state.ever_asked:
        raise NotFound(f"{state.run_id} has no question {shown!r}.", hint=LIST_HINT)
    if run_state not in ("queued", "running", "parked"):
        raise Conflict(f"{state.run_id} is over: it {run_state}.", hint=LIST_HINT)
    if question not in state.asked:
        again = f"{question}~"
        why = "nobody answered in time, and somebody else was asked" if again in state.ever_asked else "the run went on"
        raise Conflict(f"{shown} is not open any more: {why}.", hint=LIST_HINT)
    asked = state.nodes[state.asked[question]].questions[question]
    if asked.expires_at is not None and asked.expires_at <= now:
        raise Conflict(f"{shown} expired at {asked.expires_at:%Y-%m-%d %H:%M:%S} UTC.", hint=LIST_HINT)
    if asked.approval and set(asked.options) <= {"yes", "no"} and not (is_yes(answer) or is_no(answer)):
        raise InvalidArgument(
            f"{answer[:QUOTED_CHARS_MAX]!r} is neither yes nor no.", hint="A reason may follow a no: `no, because …`."
        )


def is_no(answer: str) -> bool:
    """Whether it begins with a no; what follows is the reason."""
    words = answer.split()
    return bool(words) and words[0].strip(",.;:!").lower() in NO
