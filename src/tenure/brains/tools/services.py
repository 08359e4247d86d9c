"""Programs that keep running in the office: they go on when the call, the run and the worker have ended, until the sandbox ends.

A service is a command whose key is that of the call which started it. Its first act is to take a lock of its name, which
lasts as long as it does, and to write its key down beside it.
"""

from __future__ import annotations

import asyncio
import shlex

from pydantic import Field

from tenure.brains.tools.commands import environment, look
from tenure.brains.tools.shell import SCRIPT_CHARS_MAX
from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done, failed, unverified
from tenure.brains.tools.words import cut, near
from tenure.work.hands import Command, CommandState, CommandStatus
from tenure.work.thoughts import CallResult

NAME_PATTERN = "^[a-z][a-z0-9-]{0,39}$"
LOOK_S = 1.0
"""How long a service is watched for falling over at once."""
EXIT_TAKEN = 98
LOG_LINES_DEFAULT, LOG_LINES_MAX = 100, 2000
START_OUTPUT_CHARS_MAX = 4000
DIRECTORY = ".tenure/services"
PREAMBLE = f"""\
mkdir -p "$HOME/{DIRECTORY}"
exec 9>>"$HOME/{DIRECTORY}/$TENURE_SERVICE.lock"
flock -n 9 || exit {EXIT_TAKEN}
echo "$TENURE_KEY" > "$HOME/{DIRECTORY}/$TENURE_SERVICE.new"
mv "$HOME/{DIRECTORY}/$TENURE_SERVICE.new" "$HOME/{DIRECTORY}/$TENURE_SERVICE.key"
"""
LIST_SCRIPT = f"""\
cd "$HOME/{DIRECTORY}" 2>/dev/null || exit 0
for file in *.key; do [ -e "$file" ] && echo "${{file%.key}} $(cat "$file")"; done
exit 0
"""


class Start(Arguments):
    name: str = Field(
        pattern=NAME_PATTERN, description="What to call it: a-z, 0-9, '-', beginning with a letter. One runs at a time."
    )
    command: str = Field(
        min_length=1,
        max_length=SCRIPT_CHARS_MAX,
        description="A script for bash that does not return, such as a web server in the foreground.",
    )
    cwd: str = Field(default="", max_length=4096, description="Directory to run in. Without it, the home.")


class Named(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="Of a service, as in service_list.")


class Logs(Named):
    lines: int = Field(
        default=LOG_LINES_DEFAULT,
        ge=1,
        le=LOG_LINES_MAX,
        description=f"How many of the last lines. Without it, {LOG_LINES_DEFAULT}.",
    )


class Nothing(Arguments):
    pass


async def start(call: Call, wanted: Start) -> CallResult:
    enter = f"cd {shlex.quote(wanted.cwd)} || exit 1\n" if wanted.cwd else ""
    command = Command(
        PREAMBLE + enter + wanted.command, {**environment(call), "TENURE_SERVICE": wanted.name}, timeout_s=None
    )
    status = CommandStatus(CommandState.ABSENT)
    if not call.order.fresh:
        status = await call.hands.command_status(call.agent, call.key)
    if status.state is CommandState.ABSENT:
        status = await call.hands.start_command(call.agent, call.key, command)
    if status.state is CommandState.RUNNING and (status.duration_s or 0) < LOOK_S:
        status = await call.hands.command_status(call.agent, call.key, wait_s=LOOK_S)
    if status.state is CommandState.RUNNING:
        return done(f"{wanted.name} runs. service_logs shows what it prints.")
    said = cut(status.output.rstrip("\n"), chars_max=START_OUTPUT_CHARS_MAX)
    if status.state is CommandState.LOST:
        return unverified(
            f"{wanted.name} was started, and the sandbox has ended since, and it with it. Start it again.\n{said}"
        )
    if status.exit_code == EXIT_TAKEN and not said:
        return failed(f"A service {wanted.name} runs already: stop it with service_stop, or take another name.")
    return failed(f"{wanted.name} ended with exit code {status.exit_code} instead of running on.\n{said}".rstrip())


async def stop(call: Call, wanted: Named) -> CallResult:
    key = await _key_of(call, wanted.name)
    if (await call.hands.command_status(call.agent, key)).state is not CommandState.RUNNING:
        return done(f"{wanted.name} does not run.")
    await call.hands.stop_command(call.agent, key)
    status = await call.hands.command_status(call.agent, key)
    if status.state is CommandState.RUNNING:
        return failed(f"{wanted.name} still runs: it did not end when told to.")
    return done(f"{wanted.name} was stopped.")


async def logs(call: Call, wanted: Logs) -> CallResult:
    status = await call.hands.command_status(call.agent, await _key_of(call, wanted.name))
    lines = status.output.rstrip("\n").split("\n")[-wanted.lines :]
    return done(f"[{wanted.name}: {_state(status)}]\n" + cut("\n".join(lines), chars_max=31_000))


async def list_all(call: Call, _: Nothing) -> CallResult:
    keys = await _keys(call)
    statuses = await asyncio.gather(*(call.hands.command_status(call.agent, key) for key in keys.values()))
    shown = [f"{name}: {_state(status)}" for name, status in zip(keys, statuses, strict=True)]
    return done("\n".join(shown) or "There are no services.")


def _state(status: CommandStatus) -> str:
    match status.state:
        case CommandState.RUNNING:
            return f"runs since {status.duration_s or 0:.0f} s"
        case CommandState.EXITED:
            return f"ended with exit code {status.exit_code}"
        case CommandState.LOST:
            return "ended with the sandbox"
        case CommandState.ABSENT:
            return "is not known any more"


async def _keys(call: Call) -> dict[str, str]:
    status = await look(call, Command(LIST_SCRIPT, timeout_s=60))
    return dict(line.split(" ", 1) for line in status.output.splitlines() if " " in line)


async def _key_of(call: Call, name: str) -> str:
    found = await call.hands.read_file(call.agent, f"{DIRECTORY}/{name}.key")
    if not found:
        keys = await _keys(call)
        there = f" There are: {', '.join(keys)}." if keys else " There are none."
        raise Refused(f"There is no service {name}.{near(name, keys)}{there}")
    return found.decode("utf-8", "replace").strip()


TOOLS = (
    Tool(
        "service_start",
        "Start a program that keeps running in the background, such as a server. It goes on after this run.",
        Start,
        start,
    ),
    Tool("service_stop", "Stop a service.", Named, stop),
    Tool("service_logs", "What a service printed last, whether it runs or has ended.", Logs, logs, reads=True),
    Tool("service_list", "All services and whether they run.", Nothing, list_all, reads=True),
)
