"""Writes docs/cli.md and docs/exit-codes.md from the commands and errors themselves: `python -m tenure.cli.reference`.

A test fails when the files and the code have drifted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tenure import errors
from tenure.cli.exit_codes import MEANINGS

HEAD = """# The command line

Written from the commands by `python -m tenure.cli.reference`; do not edit.

- Every command takes `--json` (before or after its name): one JSON document on stdout, errors included. `logs` and
  `runs follow` answer with one document per line; `up`, `ssh-proxy` and `demo` have nothing to answer beyond what they say.
- Every command takes `--home`, or TENURE_HOME from the environment; TENURE_URL and TENURE_TOKEN reach a server by address.
- stdout has the answer and nothing else. Notes and progress go to stderr, and only to a terminal. NO_COLOR is honoured.
- Errors are two lines on stderr, `error:` what happened and `hint:` what to try; [exit-codes.md](exit-codes.md) has the
  codes. TENURE_DEBUG=1 adds the stack trace.
"""

EXIT_HEAD = """# Exit codes of `tenure`

Written by `python -m tenure.cli.reference`; do not edit.

`tenure exec`, `shell`, `sql` (without a statement) and `ssh` end with the exit code of what they ran (128 + signal for a
command ended by one). An error of Tenure itself then shows by its `error:` line on stderr, or with `--json` by `error` in
the answer.

"""


def commands() -> Iterator[tuple[str, Any]]:
    """(command line, command) of every command and group, in the order of the help."""
    yield from _below("tenure", typer.main.get_command(_app()))


def _below(line: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None) if hasattr(group, "commands") else ():
        found = group.commands[name]
        yield f"{line} {name}", found
        yield from _below(f"{line} {name}", found)


def cli_markdown() -> str:
    sections = [HEAD]
    for line, found in commands():
        sections.append("\n".join(_section(line, found)))
    return "\n".join(sections)


def _section(line: str, found: Any) -> Iterator[str]:
    is_group = hasattr(found, "commands")
    arguments = [parameter for parameter in found.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in found.params if parameter.param_type_name == "option"]
    usage = " ".join(
        [line, "[OPTIONS]", *(_argument(parameter) for parameter in arguments), *(["COMMAND"] if is_group else [])]
    )
    yield f"## {line}\n"
    yield f"    {usage}\n"
    yield (found.help or "").strip() + "\n"
    if is_group:
        yield "Commands: " + ", ".join(f"`{line} {name}`" for name in found.commands) + "\n"
    rows = [_row(parameter) for parameter in [*arguments, *options] if _is_own(parameter)]
    if rows:
        yield "| | |\n|---|---|"
        yield "\n".join(rows) + "\n"


def _is_own(parameter: Any) -> bool:
    """Not one of those that every command has."""
    return parameter.name not in ("json_", "home", "help")


def _argument(parameter: Any) -> str:
    name: str = parameter.metavar or parameter.name.upper()
    if name.startswith("["):
        name = name[1:-1]
    if parameter.nargs == -1:
        name = f"-- {name}…"
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _argument(parameter)
    else:
        name = ", ".join(parameter.opts) + (f" {parameter.metavar}" if parameter.metavar else "")
    text = _cell(getattr(parameter, "help", None) or "")
    default = parameter.default
    shown = (
        f" Default: `{default}`." if isinstance(default, str | int | float) and not isinstance(default, bool) else ""
    )
    return f"| `{_cell(name)}` | {text}{shown} |"


def exit_codes_markdown() -> str:
    lines = ["| code | meaning | errors (`code` in JSON) |", "|---:|---|---|"]
    by_exit: dict[int, list[str]] = {}
    for code, cls in errors.by_code().items():
        if cls.__module__ != errors.__name__:
            continue  # a fake's, when tests have imported it
        by_exit.setdefault(cls.exit_code, []).append(f"`{code}`")
    for number, meaning in MEANINGS.items():
        lines.append(f"| {number} | {_cell(meaning)} | {', '.join(by_exit.get(number, []))} |")
    return EXIT_HEAD + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(docs: Path) -> None:
    (docs / "cli.md").write_text(cli_markdown(), encoding="utf-8")
    (docs / "exit-codes.md").write_text(exit_codes_markdown(), encoding="utf-8")


def _app() -> typer.Typer:
    from tenure.cli.app import app

    return app


if __name__ == "__main__":
    write(Path("docs"))
