"""What the blocking and the async nouns have in common: reading what is already known, without I/O."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenure import wire
from tenure.errors import InvalidArgument, NotFound, TooLarge

PLAYBOOK_BYTES_MAX = wire.PLAYBOOK_CHARS_MAX


class AgentView:
    """`info` is what the server said last; `show()` asks anew."""

    def __init__(self, name: str, info: wire.Agent | None = None) -> None:
        self.name = name
        self.info = info

    @property
    def state(self) -> wire.AgentState | None:
        """As of the last answer; None when the server was not asked yet."""
        return self.info.state if self.info else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state or ''}>".replace(" >", ">")


class RunView:
    """`info` is what the server said last; `show()` asks anew."""

    def __init__(self, info: wire.Run) -> None:
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def agent_name(self) -> str:
        return self.info.agent

    @property
    def state(self) -> wire.RunState:
        return self.info.state

    @property
    def steps(self) -> list[wire.RunStep]:
        return self.info.steps

    @property
    def question(self) -> str | None:
        """What the run asks while it is parked."""
        return self.info.question

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"


def agent_request(
    name: str,
    cpus: float | None,
    memory_mb: int | None,
    disk_gb: float | None,
    processes: int | None,
    egress: Sequence[str],
    *,
    asleep: bool = False,
) -> wire.AgentRequest:
    with refusing():
        return wire.AgentRequest(
            name=name,
            cpus=cpus,
            memory_mb=memory_mb,
            disk_gb=disk_gb,
            processes=processes,
            egress=list(egress),
            asleep=asleep,
        )


def exec_request(
    command: Sequence[str] | str,
    *,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str,
    stdin: bytes | str | None,
    timeout_s: float,
) -> wire.ExecRequest:
    """A string is a shell script, a sequence the command and its arguments."""
    import base64

    data = stdin.encode() if isinstance(stdin, str) else stdin
    if data is not None and len(data) > wire.STDIN_BYTES_MAX:
        raise TooLarge(
            f"stdin has {len(data)} bytes; at most {wire.STDIN_BYTES_MAX} are possible.",
            hint="Upload a file, and let the command read it.",
        )
    with refusing():
        return wire.ExecRequest(
            argv=None if isinstance(command, str) else list(command),
            script=command if isinstance(command, str) else None,
            env=dict(env or {}),
            cwd=cwd,
            user=user,
            stdin_b64=None if data is None else base64.b64encode(data).decode(),
            timeout_s=timeout_s,
        )


def run_request(
    agent: str,
    goal: str,
    playbook: str | Path | None,
    inputs: Mapping[str, Any] | None,
    checks: Sequence[wire.RunCheck] = (),
) -> wire.RunRequest:
    """`playbook` is a path, or the playbook's text (a string of several lines)."""
    text, name = (None, None) if playbook is None else playbook_text(playbook)
    with refusing():
        return wire.RunRequest(
            agent=agent,
            goal=goal,
            playbook=text,
            playbook_name=name,
            inputs=dict(inputs or {}),
            accept=list(checks),
        )


def costs_by(what: str) -> wire.CostsBy:
    """Raises `InvalidArgument`."""
    if what not in list(wire.CostsBy):
        raise InvalidArgument(f"{what!r} is nothing to sum by.", hint=f"One of: {', '.join(wire.CostsBy)}.")
    return wire.CostsBy(what)


def run_fork_request(
    at: str, new: str, before: bool | None, playbook: str | Path | None, inputs: Mapping[str, Any] | None
) -> wire.RunForkRequest:
    """`playbook` as in `run_request`."""
    text, name = (None, None) if playbook is None else playbook_text(playbook)
    with refusing():
        return wire.RunForkRequest(
            at=at, new=new, before=before, playbook=text, playbook_name=name, inputs=dict(inputs or {})
        )


def playbook_text(playbook: str | Path) -> tuple[str, str | None]:
    """Text and file name. Raises `NotFound`, `TooLarge`, `InvalidArgument` (not UTF-8, a directory, not readable)."""
    if isinstance(playbook, str) and "\n" in playbook:
        return playbook, None
    path = Path(playbook)
    try:
        if path.stat().st_size > PLAYBOOK_BYTES_MAX:
            raise TooLarge(f"{path} is longer than {PLAYBOOK_BYTES_MAX} bytes.", hint="Is it really a playbook?")
        return path.read_text(encoding="utf-8"), path.name
    except FileNotFoundError:
        raise NotFound(f"There is no playbook {path}.", hint="Give the path of a YAML file, or its text.") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8 text.", hint="A playbook is a YAML file.") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None


class refusing:
    """Turns pydantic's refusal of a request, which is built on this side, into `InvalidArgument`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            raise InvalidArgument(explain(error)) from None


def explain(error: Any) -> str:
    """`cpus: Input should be greater than 0; …` of a pydantic `ValidationError`."""
    lines: list[str] = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"])
        text = str(item["msg"]).removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    return "; ".join(lines) + "."


def shown_command(argv: Sequence[str]) -> str:
    """For messages."""
    text = shlex.join(argv)
    return text if len(text) <= 120 else text[:117] + "..."
