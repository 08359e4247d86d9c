"""The shape of a playbook file.

    name: weather
    goal: find the anomalous days              # optional; the run's own goal goes before it
    inputs: {threshold: 3.5}                   # defaults of ${{ inputs.threshold }}; null: must be given
    env: {LANG: C.UTF-8}
    defaults: {timeout: 10m, retry: 1}
    concurrency: 4                             # steps at once
    on_failure: ask                            # ask (park the run) or fail, when recovery has come to its end
    steps:
      - id: load
        needs: [install]
        run: python3 load.py                   # one of run, sql, put, notify, work
        verify: [{sql: select count(*) from days, equals: 1461}]

Durations are seconds or texts like `30s`, `5m`, `1h30m`. Expressions: see `tenure.work.template`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from tenure.brains.playbook.document import Document, Path
from tenure.brains.playbook.problems import Problems, did_you_mean
from tenure.work.plan import CONCURRENCY_DEFAULT, CONCURRENCY_MAX, FOR_EACH_VALUES_MAX, RETRIES_MAX, STEPS_MAX

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?\Z")
_UNITS_S = (86400, 3600, 60, 1)
KINDS = ("run", "sql", "put", "notify", "work")
"""What a step does: exactly one of them."""
STEP_ID = r"^[A-Za-z_][A-Za-z0-9_-]{0,59}$"


def seconds(value: Any) -> Any:
    """Seconds of `90`, `1.5`, `30s`, `5m`, `1h30m`. Raises `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a duration is a number of seconds, or a text like 30s, 5m, 1h30m")
    if not isinstance(value, str):
        return float(value)
    match = _DURATION.match(value.strip())
    if not match or not value.strip():
        raise ValueError(f"{value!r} is not a duration; write seconds, or 30s, 5m, 1h30m")
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS_S, strict=True) if part)


def _scalar_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]


def _retry(value: Any) -> Any:
    return {"attempts": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _on_error(value: Any) -> Any:
    return {"step": value} if isinstance(value, str) else value


def _for_each_kind(value: Any) -> str:
    return "values" if isinstance(value, list) else "expression" if isinstance(value, str) else "query"


def _approve(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


def _notify(value: Any) -> Any:
    return {"subject": value} if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(gt=0, le=7 * 86400)]
Delay = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(ge=0, le=3600)]
Text = Annotated[str, BeforeValidator(_scalar_text, json_schema_input_type=str | int | float | bool)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=False, serialize_by_alias=True)


class Retry(_Shape):
    """`attempts` more tries at most, `delay` before the first of them, `backoff` times longer before each next."""

    attempts: int = Field(ge=0, le=RETRIES_MAX)
    delay: Delay = 2.0
    backoff: float = Field(default=2.0, ge=1, le=10)


AnyRetry = Annotated[Retry, BeforeValidator(_retry, json_schema_input_type=int | Retry)]


class Put(_Shape):
    """Copies a file of the office into its object storage."""

    path: str = Field(min_length=1)
    bucket: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    """The file's own name when it is not given."""


class NotifyMessage(_Shape):
    subject: str = Field(min_length=1)
    body: str = ""


class Approve(_Shape):
    """A person has to allow the step before it begins. Where nobody answers in time, `escalate_to` is asked, or it is a no."""

    text: str = ""
    expires: Duration | None = None
    escalate_to: str | None = Field(default=None, min_length=1, max_length=200)

    @model_validator(mode="after")
    def _in_time(self) -> Approve:
        if self.escalate_to is not None and self.expires is None:
            raise ValueError("escalate_to needs expires: when somebody else is to be asked")
        return self


class Check(_Shape):
    """One of `sql` (with `equals`, or true by itself), `run` (exits with 0), `file` (exists and is not empty), `http` (a GET is
    answered with `status`, 200 by default, and has `contains` in it)."""

    sql: str | None = None
    equals: JsonValue = None
    run: str | None = None
    file: str | None = None
    http: str | None = None
    status: int | None = Field(default=None, ge=100, le=599)
    contains: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Check:
        if sum(kind is not None for kind in (self.sql, self.run, self.file, self.http)) != 1:
            raise ValueError("give exactly one of sql, run, file, http")
        if self.http is None and (self.status is not None or self.contains is not None):
            raise ValueError("status and contains belong to http")
        if self.http is not None and not self.http.startswith(("http://", "https://", "${{")):
            raise ValueError("http is an address that begins with http:// or https://")
        if self.equals is not None and self.sql is None:
            raise ValueError("equals belongs to sql")
        return self


class SqlValues(_Shape):
    sql: str = Field(min_length=1)


class OnError(_Shape):
    """A script of its own, or (written as just its id) a step that runs only then."""

    run: str | None = None
    step: str | None = Field(default=None, exclude=True)


class Defaults(_Shape):
    timeout: Duration | None = None
    retry: AnyRetry | None = None


class Step(_Shape):
    id: str = Field(pattern=STEP_ID)
    name: str = ""
    needs: Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])] = []
    run: str | None = None
    sql: str | None = None
    put: Put | None = None
    notify: Annotated[NotifyMessage, BeforeValidator(_notify, json_schema_input_type=str | NotifyMessage)] | None = None
    work: Annotated[str, Field(min_length=1)] | None = None
    """Instructions for the agent's brain."""
    env: dict[str, Text] = {}
    cwd: str | None = None
    timeout: Duration | None = None
    retry: AnyRetry | None = None
    verify: Annotated[list[Check], BeforeValidator(_as_list, json_schema_input_type=Check | list[Check])] = []
    for_each: (
        Annotated[
            Annotated[list[Text], Field(min_length=1, max_length=FOR_EACH_VALUES_MAX), Tag("values")]
            | Annotated[SqlValues, Tag("query")]
            | Annotated[str, Tag("expression")],
            Discriminator(_for_each_kind),
        ]
        | None
    ) = None
    """Values, `{sql: query}`, or one expression `${{ inputs.NAME }}` whose value is a list."""
    condition: Text | None = Field(default=None, alias="if")
    on_error: Annotated[OnError, BeforeValidator(_on_error, json_schema_input_type=str | OnError)] | None = None
    on_lost: Literal["ask", "retry"] = "ask"
    approve: Annotated[Approve | None, BeforeValidator(_approve, json_schema_input_type=bool | Approve)] = None
    undo: str | None = Field(default=None, min_length=1)
    risky: bool = False
    snapshot: bool | None = None
    final: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)} (found {', '.join(given) or 'none'})")
        if self.work is not None and not self.verify:
            raise ValueError("work needs verify: it is done when a check holds that a machine can make")
        return self


class Playbook(_Shape):
    name: str = Field(min_length=1, max_length=200)
    goal: str | None = None
    inputs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")], JsonValue] = {}
    env: dict[str, Text] = {}
    defaults: Defaults = Defaults()
    concurrency: int = Field(default=CONCURRENCY_DEFAULT, ge=1, le=CONCURRENCY_MAX)
    on_failure: Literal["ask", "fail"] = "ask"
    steps: list[Step] = Field(min_length=1, max_length=STEPS_MAX)


def json_schema() -> dict[str, Any]:
    """The JSON schema of playbook files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Playbook.model_json_schema()}


def validate(document: Document, problems: Problems) -> Playbook:
    """Raises `PlaybookError` with every violation."""
    if not isinstance(document.data, dict):
        problems.add((), "a playbook is a mapping with `name` and `steps`")
        problems.stop_if_any()
    try:
        return Playbook.model_validate(cast("Any", document.data))
    except ValidationError as error:
        for violation in error.errors(include_url=False, include_input=False):
            path = _path_in(cast("Any", document.data), violation["loc"])
            problems.add(path, _sentence(violation["type"], violation["msg"], path))
        problems.stop_if_any()
        raise


def _path_in(data: Any, location: tuple[int | str, ...]) -> Path:
    """pydantic's location without its own parts (names of union members), as a path in the file."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        if _has(data, part):
            data = data[part]
        elif index != len(location) - 1 or not isinstance(part, str) or part[:1].isupper() or "[" in part:
            continue  # only a last part may be missing from the file: the field that is required
        path.append(part)
    return tuple(path)


def _has(data: Any, part: int | str) -> bool:
    if isinstance(part, int):
        return isinstance(data, list) and part < len(cast("list[Any]", data))
    return isinstance(data, dict) and part in data


def _sentence(kind: str, message: str, path: Path) -> str:
    if kind == "extra_forbidden":
        return f"there is no such field{did_you_mean(str(path[-1]) if path else '', _FIELDS)}"
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ").rstrip(".")


_FIELDS = sorted(
    {
        field.alias or name
        for shape in (Playbook, Step, Retry, Put, NotifyMessage, Approve, Check, Defaults, OnError)
        for name, field in shape.model_fields.items()
    }
)
