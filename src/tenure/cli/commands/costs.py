"""tenure costs"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import WORK, command
from tenure.cli.session import Session

if TYPE_CHECKING:
    from tenure import wire


def costs(
    session: Session,
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", show_default=False, help="Only this agent's.")
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="agent, run, step, model or day (UTC).")] = "run",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="So many lines at most.")] = 200,
) -> None:
    """Show what brains took: requests, tokens, money.

    The latest first. Where the price of some requests is not known, the sum of the others has a + behind it."""
    found = session.tenure.costs(agent, by=by, limit=limit)
    if session.json:
        output.print_json({"by": by, "costs": found})
        return
    if not found:
        output.note("No brain has thought yet.")
        return
    names = {
        "agent": ("agent",),
        "run": ("run", "agent"),
        "step": ("run", "step"),
        "model": ("model",),
        "day": ("day",),
    }
    headers = (*(name.upper() for name in names[by]), "REQUESTS", "IN", "OUT", "USD", "TOOK")
    output.print_table(headers, [_row(one, names[by]) for one in found], right=headers[-5:])


def _row(cost: wire.Cost, names: tuple[str, ...]) -> list[str]:
    shown = [str(getattr(cost, name) or "-") for name in names]
    counts = [f"{cost.requests:,}", f"{cost.input_tokens:,}", f"{cost.output_tokens:,}"]
    return [*shown, *counts, dollars(cost.cost_usd, cost.unpriced), output.human_duration(cost.duration_s)]


def dollars(usd: float | None, unpriced: int = 0) -> str:
    """`0.0125`, `0.0125+` when more of unknown price comes to it, `-` when nothing of it is known."""
    return "-" if usd is None else f"{usd:.4f}{'+' if unpriced else ''}"


def register(app: typer.Typer) -> None:
    command(app, "costs", rich_help_panel=WORK)(costs)
