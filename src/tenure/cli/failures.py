"""The one place where errors of the command line are printed and become exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from tenure.cli.exit_codes import BROKEN_PIPE, INTERRUPTED
from tenure.errors import DiskFull, Forbidden, InternalError, SetupError, TenureError, UsageError
from tenure.settings import Settings

SEPARATOR_HINT = "Put `--` between the agent and its command: tenure exec analyst -- ls -l"


class ReaderGone(Exception):
    """Whoever read our output closed it. (Typer has an opinion of its own about `BrokenPipeError`.)"""


def guarded(words: list[str], run: Callable[[], int]) -> int:
    """`run()`'s exit code; or that of the error it raised, which is printed. Never raises, never shows a stack trace
    (unless TENURE_DEBUG is set)."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except (BrokenPipeError, ReaderGone):
        # Python would complain again when it flushes at exit, so what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last stop of every error
        if _debugging():
            import traceback

            traceback.print_exc()
        found = as_tenure_error(error, words)
        show(found, as_json=wants_json(words))
        return found.exit_code


def _debugging() -> bool:
    try:
        return Settings.from_environment().debug
    except ValueError:
        return False


def wants_json(words: list[str]) -> bool:
    """Looks at the bare words, because errors of the command line itself come before it is parsed."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def as_tenure_error(error: BaseException, words: list[str]) -> TenureError:
    if isinstance(error, TenureError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error, words)
    if isinstance(error, ModuleNotFoundError):
        return SetupError(
            f"A part of Tenure's installation is missing: {error.name}.",
            hint="Install it again: pip install --force-reinstall tenure",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return _file_error(error)
    return InternalError(
        f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        hint="This is a bug in Tenure. TENURE_DEBUG=1 shows where it happened.",
    )


def _file_error(error: OSError) -> TenureError:
    """Trouble with a file of this machine, which no command expected."""
    name, why = os.fsdecode(error.filename), error.strerror or type(error).__name__
    if isinstance(error, PermissionError):
        return Forbidden(
            f"This user may not use {name}: {why}.", hint="Choose another place, or run it as another user (`sudo`)."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"This machine's disk is full: {name} could not be written.", hint="Make room and try again.")
    return TenureError(f"{name}: {why}.", hint="TENURE_DEBUG=1 shows where it happened.")


def _usage_error(error: Any, words: list[str]) -> TenureError:
    """Typer's own complaints, in our shape."""
    message = str(error.format_message()).strip()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tenure"
    hint = f"`{path} --help` shows how it is used."
    below: dict[str, Any] = getattr(getattr(context, "command", None), "commands", {})
    if below and path != "tenure":
        hint = f"One of: {', '.join(below)}. `{path} --help` says more."
    if path.endswith(" exec") and "--" not in words:
        hint = SEPARATOR_HINT
    return UsageError(message or "This command line is not complete.", hint=hint)


def show(error: TenureError, *, as_json: bool) -> None:
    """With --json the payload of the API on stdout, where the answer would have been; otherwise two lines on stderr."""
    if as_json:
        print(json.dumps(error.to_payload(), indent=2, default=str))
        sys.stdout.flush()
        return
    from tenure.cli.output import paint, printable

    print(f"{paint('error:', 'bold red', sys.stderr)} {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {paint('hint:', 'cyan', sys.stderr)} {printable(error.hint)}", file=sys.stderr)
