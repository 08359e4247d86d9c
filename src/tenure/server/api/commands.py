"""Commands in an office: answered in one piece, attached to a WebSocket, or kept under a key."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.websockets import WebSocket

from tenure import wire
from tenure.errors import InvalidArgument, TooLarge
from tenure.server.access import AgentName, Has, of_agent, requires
from tenure.server.attach import carry
from tenure.server.checks import check_command
from tenure.work.hands import Command

router = APIRouter(prefix="/v1/agents/{name}", tags=["commands"])

KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@=+-]{0,199}$"
Key = Annotated[str, Path(pattern=KEY_PATTERN, description="Idempotency key: a second start with it starts nothing")]


@router.post("/exec", response_model=wire.ExecResult, dependencies=[requires("command:run", of_agent("command"))])
async def execute(name: AgentName, body: wire.ExecRequest, has: Has) -> Any:
    """Runs a command to its end; at most the first MiB of each stream is returned. A client that leaves ends it."""
    check_command(argv=body.argv, script=body.script, env=body.env, cwd=body.cwd, user=body.user)
    done = await has.offices.run(
        name,
        argv=body.argv,
        script=body.script,
        env=body.env,
        cwd=body.cwd,
        user=body.user,
        stdin=_stdin(body.stdin_b64),
        timeout_s=body.timeout_s,
    )
    stdout, stderr = done.stdout[: wire.OUTPUT_BYTES_MAX], done.stderr[: wire.OUTPUT_BYTES_MAX]
    return wire.ExecResult(
        exit_code=done.exit_code,
        timed_out=done.timed_out,
        stdout_b64=base64.b64encode(stdout).decode(),
        stderr_b64=base64.b64encode(stderr).decode(),
        stdout_bytes=done.stdout_bytes,
        stderr_bytes=done.stderr_bytes,
        truncated=done.stdout_bytes > len(stdout) or done.stderr_bytes > len(stderr),
        duration_s=done.duration_s,
    )


def _stdin(text: str | None) -> bytes:
    try:
        data = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("stdin_b64: is not base64.") from error
    if len(data) > wire.STDIN_BYTES_MAX:
        raise TooLarge(
            f"stdin is {len(data)} bytes; {wire.STDIN_BYTES_MAX} can be sent with a command.",
            hint="Attach to the command (`tenure exec` does), or copy a file into the office.",
        )
    return data


@router.websocket("/attach", dependencies=[requires("command:attach", of_agent("command"))])
async def attach(websocket: WebSocket, name: AgentName, has: Has) -> None:
    """Runs a command with its streams, and a terminal if wanted, over the socket: see `tenure.server.attach`."""
    await has.offices.need(name)  # while an HTTP answer can still say that there is none
    await websocket.accept()
    await carry(websocket, name, has.offices)


@router.put(
    "/commands/{key}",
    response_model=wire.CommandStatus,
    dependencies=[requires("command:start", of_agent("command"))],
)
async def start(name: AgentName, key: Key, body: wire.CommandRequest, has: Has) -> Any:
    """Starts the script unless the key is known. It goes on when the caller or this server dies."""
    check_command(script=body.script, env=body.env, cwd=body.cwd, user=body.user)
    command = Command(body.script, dict(body.env), body.cwd, body.user, body.timeout_s)
    return await has.offices.command_start(name, key, command)


@router.get(
    "/commands/{key}",
    response_model=wire.CommandStatus,
    dependencies=[requires("command:read", of_agent("command"))],
)
async def status(
    name: AgentName,
    key: Key,
    has: Has,
    wait_s: Annotated[float, Query(ge=0, le=wire.COMMAND_WAIT_S_MAX, allow_inf_nan=False)] = 0.0,
) -> Any:
    """What became of it; waits up to `wait_s` for its end."""
    return await has.offices.command_status(name, key, wait_s=wait_s)


@router.post("/commands/{key}/stop", status_code=204, dependencies=[requires("command:stop", of_agent("command"))])
async def stop(name: AgentName, key: Key, has: Has) -> None:
    """Ends its process group; not an error when it has ended or never was."""
    await has.offices.command_stop(name, key)


@router.delete("/commands/{key}", status_code=204, dependencies=[requires("command:forget", of_agent("command"))])
async def forget(name: AgentName, key: Key, has: Has) -> None:
    """Drops the record of an ended command."""
    await has.offices.command_forget(name, key)
