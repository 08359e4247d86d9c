"""A program's terminals are keyed commands of the office: each is started once, and what of it is left can be found."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
from collections.abc import Mapping
from typing import Any

from tenure.errors import Conflict, NotFound
from tenure.faultpoints import reach
from tenure.work.hands import Command, CommandState, CommandStatus, Hands

TERMINALS_MAX = 64
"""That a program has at once, ended ones that it did not release with them."""
WAIT_S = 20.0
"""One question after a running command; the next follows at once."""
LOOK_AHEAD = 3
"""Keys without a command after which there are taken to be no more: the start of one may have failed."""
SIGNAL_BASE = 128


class Terminals:
    """Of one start of the program. Raises what `Hands` raises."""

    def __init__(self, hands: Hands, agent: str, prefix: str, env: Mapping[str, str]) -> None:
        self._hands, self._agent, self._prefix, self._env = hands, agent, prefix, dict(env)
        self._count = 0
        self._limits: dict[str, int | None] = {}
        self._turn = asyncio.Lock()
        self._starting: asyncio.Future[CommandStatus] | None = None
        self.waiting = 0
        """How many requests wait for the end of one: a program that does is not silent."""

    async def create(self, params: Mapping[str, Any]) -> str:
        """Starts a command; its id is its key. Raises `Conflict` when there are too many."""
        if len(self._limits) >= TERMINALS_MAX:
            raise Conflict(f"There are {TERMINALS_MAX} terminals already; release one first.")
        command = Command(_script(params), {**self._env, **_env(params)}, params.get("cwd"))
        async with self._turn:  # keys without gaps: that is how the next worker finds them
            self._count += 1
            key = terminal_key(self._prefix, self._count)
            self._limits[key] = params.get("outputByteLimit")
            reach("acp.terminal.before")
            self._starting = asyncio.ensure_future(self._hands.start_command(self._agent, key, command))
            await asyncio.shield(self._starting)  # once it is on its way, it has to be known whether it began
            reach("acp.terminal.after")
        return key

    async def output(self, terminal: str) -> dict[str, Any]:
        status = await self._hands.command_status(self._agent, self._known(terminal))
        text, limit = status.output, self._limits[terminal]
        if limit is not None and len(raw := text.encode("utf-8", "replace")) > limit:
            text = raw[len(raw) - limit :].decode("utf-8", "ignore")
        found: dict[str, Any] = {
            "output": text,
            "truncated": status.output_bytes > len(text.encode("utf-8", "replace")),
        }
        if status.state is not CommandState.RUNNING:
            found["exitStatus"] = _exit(status)
        return found

    async def wait(self, terminal: str) -> dict[str, Any]:
        key = self._known(terminal)
        self.waiting += 1
        try:
            while True:
                status = await self._hands.command_status(self._agent, key, wait_s=WAIT_S)
                if status.state is not CommandState.RUNNING:
                    return _exit(status)
        finally:
            self.waiting -= 1

    async def kill(self, terminal: str) -> None:
        await self._hands.stop_command(self._agent, self._known(terminal))

    async def release(self, terminal: str) -> None:
        key = self._known(terminal)
        del self._limits[terminal]
        await self._hands.stop_command(self._agent, key)
        await self._hands.forget_command(self._agent, key)

    async def end(self) -> None:
        """Ends what runs. Nothing is started any more."""
        if self._starting is not None:
            await asyncio.wait({self._starting})
        for terminal in list(self._limits):
            await self.kill(terminal)

    def _known(self, terminal: str) -> str:
        if terminal not in self._limits:
            raise NotFound(f"There is no terminal {terminal[:80]!r}.")
        return terminal


def terminal_key(prefix: str, number: int) -> str:
    return f"{prefix}.t{number}"


async def end_left(hands: Hands, agent: str, prefix: str) -> int:
    """Ends what runs of the terminals of a start whose worker died; how many there had been."""
    number = last = 0
    while number - last < LOOK_AHEAD:
        number += 1
        status = await hands.command_status(agent, terminal_key(prefix, number))
        if status.state is not CommandState.ABSENT:
            last = number
            await hands.stop_command(agent, terminal_key(prefix, number))
    return last


def _script(params: Mapping[str, Any]) -> str:
    """Some programs send a word and arguments, some a line for a shell."""
    arguments = [str(argument) for argument in params.get("args") or ()]
    return f"exec {shlex.join([params['command'], *arguments])}" if arguments else str(params["command"])


def _env(params: Mapping[str, Any]) -> dict[str, str]:
    return {str(one["name"]): str(one["value"]) for one in params.get("env") or ()}


def _exit(status: CommandStatus) -> dict[str, Any]:
    """Lost with its sandbox: neither a code nor a signal is known."""
    code = status.exit_code
    if code is not None and code > SIGNAL_BASE:
        with contextlib.suppress(ValueError):
            return {"exitCode": None, "signal": signal.Signals(code - SIGNAL_BASE).name}
    return {"exitCode": code, "signal": None}
