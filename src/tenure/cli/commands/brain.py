"""tenure brain show | set"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import AGENTS, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from tenure import wire

brain_app = typer.Typer(help="Show and choose how an agent thinks: its model, budgets, what needs a person's yes.")


@command(brain_app, "show")
def show(session: Session, agent: AgentName) -> None:
    """Show how an agent thinks."""
    _print(session, session.tenure.agents(agent).brain())


@command(brain_app, "set")
def set_brain(
    session: Session,
    agent: AgentName,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PROVIDER:MODEL",
            help="Of openai, openai-responses, openai-chat, anthropic or google.",
        ),
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER:MODEL", help="Asked where the model fails. May be repeated; '' for none."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a server that speaks OpenAI's protocol, for openai:MODEL; '' for none."),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable of the server's environment with the key; '' for the usual one."),
    ] = None,
    budget_tokens: Annotated[int | None, typer.Option(metavar="N", help="For each run; 0: no limit.")] = None,
    budget_usd: Annotated[float | None, typer.Option(metavar="USD", help="For each run; 0: no limit.")] = None,
    budget_usd_day: Annotated[
        float | None, typer.Option(metavar="USD", help="For all of the agent's runs in a day (UTC); 0: no limit.")
    ] = None,
    budget_requests: Annotated[int | None, typer.Option(metavar="N", help="For each run; 0: no limit.")] = None,
    approve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Tools that need a person's yes, each call. May be repeated; '' for none."
        ),
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Of one request; a longer conversation is shortened.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the model, such as max_tokens=8000. May be repeated; '' for none."),
    ] = None,
    brain: Annotated[
        str | None,
        typer.Option(metavar="BRAIN", help="pydantic_ai (a model), acp or process (a program of the office)."),
    ] = None,
    program: Annotated[
        str | None, typer.Option("--command", metavar="COMMAND", help="Of a brain that is a program.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For the program; kept in the open. May be repeated; '' for none."),
    ] = None,
) -> None:
    """Choose how an agent thinks.

    What is not given stays as it is. Runs that began go on as they began. Keys are never given here: the server finds them
    in its own environment."""
    from tenure import wire
    from tenure.client.views import refusing

    handle = session.tenure.agents(agent)
    try:
        before = handle.brain().model_dump()
    except NotFound:
        handle.show()  # raises where it is the agent that there is not
        before = wire.BrainRequest().model_dump()
    wanted: dict[str, Any] = before | {"models": _models(before["models"], model, fallback)}
    wanted["budget"] |= _budget(budget_tokens, budget_usd, budget_usd_day, budget_requests)
    given = {
        "base_url": None if base_url is None else (base_url,),
        "key_env": None if key_env is None else (key_env,),
        "approve": None if approve is None else ([text for text in approve if text],),
        "context_tokens_max": None if context_tokens is None else (context_tokens,),
        "model_settings": None if setting is None else ({key: _value(text) for key, text in _pairs(setting)},),
        "brain": None if brain is None else (brain,),
        "command": None if program is None else (shlex.split(program),),
        "env": None if env is None else (dict(_pairs(env)),),
    }
    wanted |= {name: None if value == ("",) else value[0] for name, value in given.items() if value is not None}
    with refusing():
        request = wire.BrainRequest.model_validate(wanted)
    _print(session, handle.set_brain(request))


def _budget(
    tokens: int | None, usd: float | None, usd_day: float | None, requests: int | None
) -> dict[str, float | None]:
    given = {"tokens": tokens, "cost_usd": usd, "agent_day_cost_usd": usd_day, "requests": requests}
    return {name: value or None for name, value in given.items() if value is not None}


def _models(before: list[str], model: str | None, fallback: list[str] | None) -> list[str]:
    first = [model] if model else before[:1]
    others = before[1:] if fallback is None else [text for text in fallback if text]
    if others and not first:
        raise InvalidArgument("A fallback needs a model before it.", hint="Give --model, too.")
    return [*first, *others]


def _pairs(texts: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in filter(None, texts):
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{text!r} is not KEY=VALUE.")
        pairs.append((key, value))
    return pairs


def _value(text: str) -> Any:
    """JSON where it is JSON, text else."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print(session: Session, brain: wire.Brain) -> None:
    if session.json:
        output.print_json(brain)
        return
    budget = brain.budget
    spent = {
        "tokens": budget.tokens,
        "USD": budget.cost_usd,
        "requests": budget.requests,
        "USD a day": budget.agent_day_cost_usd,
    }
    fields = {
        "brain": brain.brain,
        "model": brain.models[0] if brain.models else "",
        "fallbacks": ", ".join(brain.models[1:]),
        "server": brain.base_url or "",
        "key in": brain.key_env or "",
        "model settings": ", ".join(f"{key}={json.dumps(value)}" for key, value in brain.model_settings.items()),
        "command": shlex.join(brain.command),
        "environment": ", ".join(brain.env),
        "budget": ", ".join(f"{value:g} {unit}" for unit, value in spent.items() if value is not None) or "no limit",
        "needs a yes": ", ".join(brain.approve),
    }
    output.print_fields({name: value for name, value in fields.items() if value})


def register(app: typer.Typer) -> None:
    app.add_typer(brain_app, name="brain", rich_help_panel=AGENTS)
