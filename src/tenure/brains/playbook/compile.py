"""From a valid playbook to a plan: everything that a schema cannot see is checked here, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from tenure.brains.playbook import schema
from tenure.brains.playbook.graph import cycle_in, upstream_of
from tenure.brains.playbook.problems import Problems, did_you_mean
from tenure.errors import InvalidArgument, InvalidName
from tenure.names import check_name
from tenure.work import plan as p
from tenure.work import template

_WHOLE_INPUT = re.compile(r"\s*\$\{\{\s*inputs\.([A-Za-z_][A-Za-z0-9_-]*)\s*\}\}\s*\Z")


def compile_playbook(playbook: schema.Playbook, inputs: Mapping[str, Any], problems: Problems) -> p.Plan:
    """Raises `PlaybookError`, and `InvalidArgument` for inputs that are unknown or missing."""
    given = _inputs(playbook, inputs)
    menders = {step.on_error.step for step in playbook.steps if step.on_error and step.on_error.step}
    _check_ids(playbook, menders, problems)
    problems.stop_if_any()
    scripts = {step.id: step.run for step in playbook.steps if step.id in menders}
    indexed = [(index, step) for index, step in enumerate(playbook.steps) if step.id not in menders]
    upstream = upstream_of({step.id: step.needs for _, step in indexed})
    steps: list[p.PlanStep] = []
    for index, step in indexed:
        script = _mender(step, scripts)
        for_each = _for_each(step, given, index, problems)
        _check_expressions(step, script, index, list(given), upstream[step.id], problems)
        steps.append(_step(step, script, for_each, playbook.defaults))
    for name, value in playbook.env.items():
        for message in _wrong(value, list(given), [], has_item=False):
            problems.add(("env", name), message)
    nodes = sum(len(step.for_each.values) if step.for_each and step.for_each.values else 1 for step in steps)
    if nodes > p.NODES_MAX:
        problems.add(
            ("steps",), f"with every for_each value counted these are {nodes} steps; {p.NODES_MAX} are allowed"
        )
    problems.stop_if_any()
    return p.Plan(
        steps=tuple(steps),
        env=playbook.env,
        inputs=given,
        concurrency=playbook.concurrency,
        on_failure=p.OnFailure(playbook.on_failure),
    )


def _inputs(playbook: schema.Playbook, inputs: Mapping[str, Any]) -> dict[str, Any]:
    for name in inputs:
        if name not in playbook.inputs:
            known = ", ".join(playbook.inputs) or "none"
            raise InvalidArgument(
                f"The playbook has no input {name!r}{did_you_mean(name, playbook.inputs)}.", hint=f"Inputs: {known}."
            )
    given = {**playbook.inputs, **inputs}
    for name, value in given.items():
        if value is None:
            raise InvalidArgument(
                f"The playbook's input {name!r} has no default and was not given.",
                hint=f"On the command line: --input {name}=VALUE",
            )
    return given


def _check_ids(playbook: schema.Playbook, menders: set[str], problems: Problems) -> None:
    first: dict[str, int] = {}
    for index, step in enumerate(playbook.steps):
        if step.id in first:
            line = problems.document.position(("steps", first[step.id], "id"))[0]
            problems.add(("steps", index, "id"), f"there is a step {step.id!r} already, in line {line}")
        first.setdefault(step.id, index)
    for index, step in enumerate(playbook.steps):
        _check_needs(index, step, first, menders, problems)
        _check_on_error(index, step, first, playbook, problems)
        if step.id in menders and (step.needs or step.for_each or step.verify or step.on_error or step.condition):
            problems.add(
                ("steps", index), "a step used as on_error has only id, name and run: it runs in place of its caller"
            )
    if not problems.found:
        cycle = cycle_in({step.id: step.needs for step in playbook.steps})
        if cycle:
            path = ("steps", first[cycle[0]], "needs")
            problems.add(path, f"steps need each other in a circle: {' → '.join([*cycle, cycle[0]])}")


def _check_needs(
    index: int, step: schema.Step, known: Mapping[str, int], menders: set[str], problems: Problems
) -> None:
    for position, need in enumerate(step.needs):
        path = ("steps", index, "needs", position)
        if need == step.id:
            problems.add(path, f"{step.id!r} cannot need itself")
        elif need not in known:
            problems.add(path, f"there is no step {need!r}{did_you_mean(need, known)}")
        elif need in menders:
            problems.add(path, f"{need!r} runs only when another step fails (on_error), so nothing can need it")


def _check_on_error(
    index: int, step: schema.Step, known: Mapping[str, int], playbook: schema.Playbook, problems: Problems
) -> None:
    if step.on_error is None:
        return
    path, mender = ("steps", index, "on_error"), step.on_error.step
    if mender is None:
        if step.on_error.run is None:
            problems.add(path, "give a step's id, or {run: script}")
    elif mender not in known:
        problems.add(path, f"there is no step {mender!r}{did_you_mean(mender, known)}")
    elif playbook.steps[known[mender]].run is None:
        problems.add(path, f"{mender!r} must be a run step to mend another")


def _mender(step: schema.Step, scripts: Mapping[str, str | None]) -> str | None:
    if step.on_error is None:
        return None
    return step.on_error.run if step.on_error.step is None else scripts[step.on_error.step]


def _for_each(step: schema.Step, inputs: Mapping[str, Any], index: int, problems: Problems) -> p.ForEach | None:
    path = ("steps", index, "for_each")
    if step.for_each is None or isinstance(step.for_each, schema.SqlValues):
        return p.ForEach(sql=step.for_each.sql) if step.for_each else None
    values: Sequence[Any] = step.for_each
    if isinstance(step.for_each, str):
        whole = _WHOLE_INPUT.match(step.for_each)
        found = inputs.get(whole[1]) if whole else None
        if not isinstance(found, list) or not found:
            problems.add(path, "give a list of values, {sql: query}, or ${{ inputs.NAME }} of an input that is a list")
            return None
        values = cast("list[Any]", found)
    texts = [p.item_text(value) for value in values]
    if len(set(texts)) != len(texts):
        problems.add(path, "a value is given twice")
    if len(texts) > p.FOR_EACH_VALUES_MAX or any(len(text) > p.ITEM_CHARS_MAX for text in texts):
        problems.add(path, f"at most {p.FOR_EACH_VALUES_MAX} values of {p.ITEM_CHARS_MAX} characters are allowed")
    return p.ForEach(values=tuple(texts))


def _check_expressions(
    step: schema.Step, mender: str | None, index: int, inputs: list[str], upstream: list[str], problems: Problems
) -> None:
    has_item = step.for_each is not None
    texts: list[tuple[tuple[str | int, ...], str | None]] = [
        *((("env", name), value) for name, value in step.env.items()),
        (("run",), step.run),
        (("sql",), step.sql),
        (("if",), step.condition),
        (("on_error",), mender),
        (("work",), step.work),
        (("approve", "text"), step.approve.text if step.approve else None),
    ]
    if step.put:
        texts += [(("put", name), getattr(step.put, name)) for name in ("path", "bucket", "name")]
    if step.notify:
        texts += [(("notify", "subject"), step.notify.subject), (("notify", "body"), step.notify.body)]
    for position, check in enumerate(step.verify):
        kinds = ("sql", "run", "file", "http", "contains")
        texts += [(("verify", position, kind), getattr(check, kind)) for kind in kinds]
        if isinstance(check.equals, str):
            texts.append((("verify", position, "equals"), check.equals))
    for path, text in texts:
        for message in _wrong(text or "", inputs, upstream, has_item=has_item):
            problems.add(("steps", index, *path), message)
    if isinstance(step.for_each, schema.SqlValues):
        for message in _wrong(step.for_each.sql, inputs, upstream, has_item=False):
            problems.add(("steps", index, "for_each", "sql"), message)
    for message in _wrong(step.undo or "", inputs, upstream, has_item=False):
        problems.add(("steps", index, "undo"), message)
    if step.put and "${{" not in step.put.bucket:
        try:
            check_name(step.put.bucket, "bucket")
        except InvalidName as error:
            problems.add(("steps", index, "put", "bucket"), error.message.rstrip("."))


def _wrong(text: str, inputs: list[str], upstream: list[str], *, has_item: bool) -> list[str]:
    return template.check(text, inputs=inputs, upstream=upstream, has_item=has_item, suggest=did_you_mean)


def _step(step: schema.Step, mender: str | None, for_each: p.ForEach | None, defaults: schema.Defaults) -> p.PlanStep:
    retry = step.retry or defaults.retry
    return p.PlanStep(
        id=step.id,
        name=step.name,
        needs=tuple(dict.fromkeys(step.needs)),
        effect=_effect(step),
        env=step.env,
        cwd=step.cwd,
        timeout_s=step.timeout or defaults.timeout or p.STEP_TIMEOUT_S_DEFAULT,
        retry=p.Retry(attempts=retry.attempts, delay_s=retry.delay, backoff=retry.backoff) if retry else p.Retry(),
        verify=tuple(_check(check) for check in step.verify),
        for_each=for_each,
        condition=step.condition,
        on_error=mender,
        on_lost=p.OnLost(step.on_lost),
        risky=step.risky,
        snapshot=step.snapshot,
        approval=_approval(step.approve),
        undo=step.undo,
        final=step.final,
    )


def _effect(step: schema.Step) -> p.Effect:
    if step.run is not None:
        return p.RunScript(script=step.run)
    if step.sql is not None:
        return p.RunSql(statement=step.sql)
    if step.put is not None:
        name = step.put.name or PurePosixPath(step.put.path).name
        return p.PutObject(path=step.put.path, bucket=step.put.bucket, name=name)
    if step.work is not None:
        return p.Work(instructions=step.work)
    assert step.notify is not None
    return p.Notify(subject=step.notify.subject, body=step.notify.body)


def _check(check: schema.Check) -> p.Check:
    if check.sql is not None:
        return p.SqlCheck(statement=check.sql, equals=check.equals)
    if check.run is not None:
        return p.RunCheck(script=check.run)
    if check.http is not None:
        return p.HttpCheck(url=check.http, status=check.status or 200, contains=check.contains or "")
    assert check.file is not None
    return p.FileCheck(path=check.file)


def _approval(approve: schema.Approve | None) -> p.Approval | None:
    if approve is None:
        return None
    return p.Approval(text=approve.text, expires_after_s=approve.expires, escalate_to=approve.escalate_to or "")
