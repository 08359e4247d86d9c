"""The `tenure` command.

    app.py         the Typer app: every command registered, in the order of the help
    command.py     `@command`: gives each command --json and --home, and its `Session`
    session.py     what a command works with: settings, client, output
    output.py      how answers look: JSON, tables, plain lines; colour only on a terminal
    failures.py    the one place where errors are printed and become exit codes
    streams.py     this terminal's streams ↔ a command in an office
    timeline.py    a run as a picture
    commands/      one module per noun
    reference.py   writes docs/cli.md and docs/exit-codes.md

Starting takes a good part of what a short command costs, so commands import what they need inside their functions.
"""

from __future__ import annotations

__all__ = ["main"]

INTERRUPTED = 130
"""The exit code of a shell's child that Ctrl-C ended."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default) and returns its exit code, see docs/exit-codes.md."""
    try:
        import signal
        import sys

        from tenure.cli.failures import guarded

        words = sys.argv[1:] if argv is None else argv
        code = guarded(words, lambda: _run(words))
        if argv is None:  # one more Ctrl-C while the interpreter ends must not take the exit code's place
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # before or after it is guarded
        return INTERRUPTED
    return code


def _run(words: list[str]) -> int:
    from tenure.cli.app import app

    code = app(args=words, prog_name="tenure", standalone_mode=False)
    return code if isinstance(code, int) else 0
