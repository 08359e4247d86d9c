"""tenure questions | answer"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import WORK, command
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from tenure import wire

LIST_HINT = "`tenure questions` shows those that are open."


def list_questions(
    session: Session,
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", show_default=False, help="Only this agent's.")
    ] = None,
) -> None:
    """List what runs ask you: to allow something, or to tell them something."""
    found = session.tenure.questions.list(agent)
    if session.json:
        output.print_json({"questions": found})
        return
    if not found:
        output.note("No run asks anything.")
        return
    for number, question in enumerate(found):
        if number:
            print()
        print("\n".join(lines_of(question)))
    output.note(f"\nAnswer one: tenure answer {found[0].id} {'--yes' if found[0].approval else '…'}")


def answer(
    session: Session,
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", show_default=False, help="Its id; or the run's, when it asks a single question."
        ),
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", show_default=False, help="Without it you are asked.")
    ] = None,
    yes: Annotated[
        bool | None, typer.Option("--yes/--no", "-y/-n", show_default=False, help="Allow it, or not.")
    ] = None,
) -> None:
    """Answer a question of a run, which then goes on.

    A question is answered once, by whoever is first. TEXT after --no is the reason."""
    said = _said(text, yes)
    if said is None or (question.startswith("run_") and "." not in question):
        asked = _find(session, question)
        question = asked.id
        said = said or _ask(session, asked)
    run = session.tenure.questions.answer(question, said)
    if session.json:
        output.print_json(run.info)
        return
    print(f"{run.id} is {run.state}.")
    if left := len(run.info.questions):
        output.note(f"It asks {left} more: tenure questions {run.info.agent}")
    else:
        output.note(f"Follow it: tenure runs follow {run.id}")


def _said(text: str | None, yes: bool | None) -> str | None:
    if yes is None:
        return text
    if yes and text:
        raise InvalidArgument("A yes has no text with it.", hint="Give either --yes or a text.")
    return "yes" if yes else f"no, {text}" if text else "no"


def _find(session: Session, name: str) -> wire.Question:
    """The question of this id, or the only one of this run."""
    found = [one for one in session.tenure.questions.list() if name in (one.id, one.run)]
    if not found:
        raise NotFound(f"There is no open question {name!r}.", hint=LIST_HINT)
    if len(found) > 1:
        raise InvalidArgument(
            f"{name} asks {len(found)} questions.", hint=f"Name one of them: {', '.join(one.id for one in found)}"
        )
    return found[0]


def _ask(session: Session, question: wire.Question) -> str:
    """What the person at the terminal says to it. Raises `InvalidArgument` when there is nobody."""
    if session.json or not output.is_terminal(sys.stdin):
        raise InvalidArgument(
            "The answer is missing.",
            hint="Write it after the question's id, or give --yes or --no where that is asked.",
        )
    print("\n".join(lines_of(question)), file=sys.stderr)
    while True:
        print("yes or no: " if question.approval else "Answer: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise InvalidArgument("The answer is missing.", hint=LIST_HINT)
        if said := line.strip():
            return said


def lines_of(question: wire.Question) -> list[str]:
    """A question with all that is needed to answer it."""
    whom = f"  for {question.to}" if question.to else ""
    until = f"  until {question.expires_at:%Y-%m-%d %H:%M:%S} UTC" if question.expires_at else ""
    lines = [f"{output.paint(question.id, 'bold')}  {question.agent}, {output.printable(question.step)}{whom}{until}"]
    lines += [f"  {output.paint(line, 'yellow')}" for line in output.printable(question.text).splitlines()]
    lines += [f"    {line}" for line in output.printable(question.evidence).splitlines()]
    if question.options:
        lines.append(f"  one of: {output.printable(', '.join(question.options))}")
    return lines


def register(app: typer.Typer) -> None:
    command(app, "questions", rich_help_panel=WORK)(list_questions)
    command(app, "answer", rich_help_panel=WORK)(answer)
