"""Commands in the office's shell."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.commands import environment, run_once
from tenure.brains.tools.tool import Arguments, Call, Tool, failed, unverified
from tenure.brains.tools.words import cut
from tenure.work.hands import Command, CommandState, CommandStatus
from tenure.work.thoughts import CallResult

TIMEOUT_S_DEFAULT = 600.0
TIMEOUT_S_MAX = 24 * 3600.0
SCRIPT_CHARS_MAX = 30_000
"""A quarter of what the office takes, in bytes."""
KEPT_BYTES = 64 * 1024
"""Of an output: the last part."""
WHOLE = "to see all of it, send it into a file (`… > out.txt 2>&1`) and read that with read_file"


class Shell(Arguments):
    command: str = Field(
        description="A script for bash, run as the office's user in its home. It cannot ask for input.",
        min_length=1,
        max_length=SCRIPT_CHARS_MAX,
    )
    timeout_s: float = Field(
        default=TIMEOUT_S_DEFAULT,
        ge=1,
        le=TIMEOUT_S_MAX,
        description=f"Seconds after which it is ended. Without it, {TIMEOUT_S_DEFAULT:g}.",
    )
    cwd: str = Field(default="", description="Directory to run in. Without it, the home.", max_length=4096)


async def run(call: Call, wanted: Shell) -> CallResult:
    command = Command(wanted.command, environment(call), wanted.cwd or None, timeout_s=wanted.timeout_s)
    return result_of(await run_once(call, command), wanted.timeout_s)


def result_of(status: CommandStatus, timeout_s: float) -> CallResult:
    """What a brain is told of a command that ended or is lost."""
    output = status.output.rstrip("\n")
    if status.output_bytes > KEPT_BYTES:
        left_out = status.output_bytes - KEPT_BYTES
        output = f"[… the first {left_out} of {status.output_bytes} bytes were not kept; {WHOLE} …]\n{output}"
    output = cut(output, WHOLE, chars_max=31_000)
    if status.state is CommandState.LOST:
        told = (
            "The sandbox ended while the command ran. Whether it took effect is not known: look before doing it again."
        )
        result = unverified(f"{told}\n{output}".rstrip())
    elif status.timed_out:
        result = failed(f"The command was ended after its timeout of {timeout_s:g} s.\n{output}".rstrip())
    elif status.exit_code != 0:
        result = failed(f"{output}\n[exit code {status.exit_code}]".lstrip("\n"))
    else:
        result = CallResult(ok=True, output=output)
    return result.model_copy(update={"duration_s": status.duration_s})


TOOLS = (
    Tool(
        "shell",
        "Run a command in the office, to its end, and see what it printed and its exit code. For a program that has to keep "
        "running, use service_start.",
        Shell,
        run,
    ),
)
