"""`@command`: registers a function as a command of a Typer app, and gives it --json, --home and a `Session`.

Both options are taken before and after the command's name. The function's first parameter is its `Session`; the rest
is declared as usual with Typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tenure.cli.failures import ReaderGone
from tenure.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Answer with JSON (errors as well), for programs.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Where Tenure keeps its state (default: TENURE_HOME, /var/lib/tenure)."),
]


class Outer:
    """What was said before the command's name."""

    def __init__(self, *, json: bool = False, home: Path | None = None) -> None:
        self.json, self.home = json, home


def begin(ctx: typer.Context, json_: bool, home: Path | None) -> Session:
    """The session of a command or group; what was said before its name counts as well."""
    outer = ctx.obj if isinstance(ctx.obj, Outer) else Outer()
    ctx.obj = Outer(json=json_ or outer.json, home=home or outer.home)
    return Session.begin(home=ctx.obj.home, json=ctx.obj.json, subcommand=ctx.invoked_subcommand)


SERVER, AGENTS, OFFICE, WORK = "The server", "Agents", "In an office", "Work"
"""Headings of the help."""


def command(app: typer.Typer, name: str, **settings: Any) -> Callable[[F], F]:
    """Registers a function as `name`. `settings` are those of `typer.Typer.command`."""

    def register(function: F) -> F:
        app.command(name, **settings)(with_session(function))
        return function

    return register


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(session, …)` as Typer wants it: `wrapper(ctx, …, json_, home)`."""
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        inspect.Parameter("json_", keyword, annotation=Json, default=False),
        inspect.Parameter("home", keyword, annotation=Home, default=None),
    ]
    parameters = [added[0], *(parameter.replace(kind=keyword) for parameter in own), *added[1:]]

    @wraps(function)
    def wrapper(**values: Any) -> Any:
        session = begin(values.pop("ctx"), values.pop("json_"), values.pop("home"))
        try:
            return function(session, **values)
        except BrokenPipeError as error:
            raise ReaderGone from error

    del wrapper.__wrapped__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
