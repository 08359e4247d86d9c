"""Commands of tools in the office: begun once by their key, waited for, and asked for after a crash."""

from __future__ import annotations

import base64
import functools
import json
import secrets
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from tenure.brains.tools.tool import Call
from tenure.errors import SandboxDead, SandboxError
from tenure.faultpoints import reach
from tenure.work.hands import Command, CommandState, CommandStatus

WAIT_S = 20.0
"""One question after a running command; the next follows at once."""
OVERDUE_S = 60.0
"""How long after its timeout a command that still reports to run is taken to hang with its office."""
LOOK_TIMEOUT_S = 60.0
"""For a program that only looks."""
LOST_MAX = 3
"""How often a command that changes nothing is begun when the sandbox dies under it."""
PIECE_BYTES = 96 * 1024
"""Of arguments, in one variable of the environment: Linux allows 128 KiB."""
EXIT_REFUSED = 65
"""A program of ours, run inside: it did nothing, and its output says why."""
EXIT_UNKNOWN = 67
"""It began, and does not know how it ended."""
PROGRAM_SCRIPT = 'exec python3 -I -S -c "$TENURE_PROGRAM"'


def program(name: str, arguments: Mapping[str, Any], *, timeout_s: float = LOOK_TIMEOUT_S) -> Command:
    """One of the programs in `inside/`, run by the office's Python without anything that the agent installed."""
    packed = base64.b64encode(zlib.compress(json.dumps(arguments).encode())).decode()
    pieces = [packed[at : at + PIECE_BYTES] for at in range(0, len(packed), PIECE_BYTES)]
    env = {f"TENURE_ARGUMENTS_{number}": piece for number, piece in enumerate(pieces)}
    return Command(PROGRAM_SCRIPT, {"TENURE_PROGRAM": _source(name), **env}, timeout_s=timeout_s)


@functools.cache
def _source(name: str) -> str:
    inside = files("tenure.brains.tools.inside")
    text = "".join(inside.joinpath(f"{part}.py").read_text() for part in ("told", name))
    left_out = ("from __future__", "from tenure.")  # they are one file there
    return "\n".join(line for line in text.splitlines() if not line.startswith(left_out))


async def run_once(call: Call, command: Command) -> CommandStatus:
    """The command of the call's own key, when it has ended or is lost. Raises what `Hands` raises, and `SandboxError` for one
    that the office does not end."""
    return await run_to_end(call, call.key, command, fresh=call.order.fresh)


async def look(call: Call, command: Command) -> CommandStatus:
    """A command that changes nothing: one that is lost is begun again. Raises as `run_once`, and `SandboxDead` when it is lost
    time and again."""
    status = await run_once(call, command)
    for _ in range(LOST_MAX - 1):
        if status.state is not CommandState.LOST:
            return status
        status = await ask(call, command)
    if status.state is CommandState.LOST:
        raise SandboxDead("The sandbox died again and again while the office was looked at.")
    return status


async def ask(call: Call, command: Command) -> CommandStatus:
    """Another command of the call, that changes nothing and leaves nothing behind."""
    key = f"{call.key}.ask{secrets.token_hex(4)}"
    status = await run_to_end(call, key, command, fresh=True)
    await call.hands.forget_command(call.agent, key)
    return status


async def run_to_end(call: Call, key: str, command: Command, *, fresh: bool) -> CommandStatus:
    """Begins the command unless it was begun, and waits for it to leave RUNNING."""
    hands, agent = call.hands, call.agent
    status = CommandStatus(CommandState.ABSENT) if fresh else await hands.command_status(agent, key)
    if status.state is CommandState.ABSENT:
        reach(f"effect.call.before/{call.order.node}")
        status = await hands.start_command(agent, key, command)
        reach(f"effect.call.after/{call.order.node}")
    while status.state is CommandState.RUNNING:
        if command.timeout_s is not None and (status.duration_s or 0) > command.timeout_s + OVERDUE_S:
            await hands.stop_command(agent, key)
            status = await hands.command_status(agent, key)
            if status.state is CommandState.RUNNING:
                raise SandboxError("A command still runs long after its timeout: the office does not end it.")
            return status
        status = await hands.command_status(agent, key, wait_s=WAIT_S)
    return status


def environment(call: Call) -> dict[str, str]:
    """What every command of a brain finds."""
    return {"TENURE_RUN": call.order.run_id, "TENURE_STEP": call.order.node, "TENURE_KEY": call.key}
