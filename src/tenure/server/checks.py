"""Checks of what callers send that a schema cannot say. All raise `UsageError`s, before an office is woken."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tenure.errors import InvalidArgument, NotFound, TooLarge

PATH_BYTES_MAX = 4096
"""Linux's PATH_MAX."""
ARG_BYTES_MAX = 128 * 1024
"""Linux's MAX_ARG_STRLEN: the longest single argument or environment string of a program."""
ENV_BYTES_MAX = 1024 * 1024

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_QUESTION = re.compile(r"[A-Za-z0-9_.:~-]{1,200}\Z")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}\Z")
LONG_ARGUMENT_HINT = "Put long data into a file of the office (`tenure cp`) or send it on the command's stdin."


def check_text(field: str, value: str) -> str:
    """`value`, when a program can be given it: no NUL, no lone surrogates."""
    if "\0" in value:
        raise InvalidArgument(f"{field}: contains a NUL character.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field}: is not valid Unicode.") from None
    return value


def check_id(value: str, what: str) -> str:
    """`value`, when it can be the id of a run or a message. Raises `NotFound`: what cannot be an id is nobody's."""
    if not _ID.match(value):
        raise NotFound(f"There is no {what} of this id.", hint=f"A list of the {what}s shows their ids.")
    return value


def check_question(value: str) -> str:
    """`value`, when it can be the id of a question. Raises `NotFound`."""
    if not _QUESTION.match(value):
        raise NotFound("There is no question of this id.", hint="`tenure questions` lists those that are open.")
    return value


def check_json(field: str, value: Any) -> Any:
    """`value`, when PostgreSQL's jsonb can hold it: no NUL, no lone surrogates, no NaN or infinity."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{field}: holds a number or a nesting that JSON does not have.") from None
    if "\\u0000" in text:
        raise InvalidArgument(f"{field}: contains a NUL character.")
    check_text(field, text)
    return value


def check_path(value: str, field: str = "path") -> str:
    """`value`, when it can be a path in an office; a relative one means from the user's home."""
    check_text(field, value)
    if not value:
        raise InvalidArgument(f"{field}: is empty.")
    if len(value.encode()) > PATH_BYTES_MAX:
        raise InvalidArgument(f"{field}: is longer than {PATH_BYTES_MAX} bytes.")
    return value


def check_user(value: str) -> str:
    """`value`, when it can be the name of a user of an office."""
    if not _USER.match(value):
        raise InvalidArgument("user: is not a valid user name.", hint="Offices have the users `agent` and `root`.")
    return value


def check_command(
    *,
    argv: Sequence[str] | None = None,
    script: str | None = None,
    env: Mapping[str, str],
    cwd: str | None,
    user: str,
) -> None:
    """All that can be known of a command before it is started."""
    check_user(user)
    if cwd is not None:
        check_path(cwd, "cwd")
    if script is not None:
        check_text("script", script)
    for position, argument in enumerate(argv or ()):
        _check_string(f"argv.{position}", check_text(f"argv.{position}", argument))
    total_bytes = 0
    for key, value in env.items():
        if not _ENV_NAME.match(key):
            raise InvalidArgument("env: a name of a variable is made of letters, digits and '_'.")
        _check_string(f"env.{key}", check_text(f"env.{key}", value))
        total_bytes += len(key) + len(value)
    if total_bytes > ENV_BYTES_MAX:
        raise TooLarge(f"env: is larger than {ENV_BYTES_MAX} bytes.", hint=LONG_ARGUMENT_HINT)


def _check_string(field: str, value: str) -> None:
    if len(value.encode()) >= ARG_BYTES_MAX:
        raise TooLarge(f"{field}: is longer than {ARG_BYTES_MAX} bytes, Linux's limit.", hint=LONG_ARGUMENT_HINT)
