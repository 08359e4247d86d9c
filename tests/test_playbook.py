"""A playbook is refused before anything runs, with file, line and field of all that is wrong; a good one becomes a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenure.brains.playbook import PlaybookBrain, json_schema
from tenure.brains.playbook.graph import cycle_in, upstream_of
from tenure.brains.playbook.schema import seconds
from tenure.errors import InvalidArgument, PlaybookError
from tenure.work import template
from tenure.work.plan import Approval, HttpCheck, Notify, Plan, PutObject, RunScript, RunSql, Work

EXAMPLE = Path(__file__).parent.parent / "examples" / "seattle-weather.yaml"


def plan(text: str, **inputs: Any) -> Plan:
    return PlaybookBrain(text, "file.yaml").plan("the goal", inputs)


def problems(text: str) -> list[tuple[int, str, str]]:
    """(line, field, message) of each."""
    with pytest.raises(PlaybookError) as raised:
        plan(text)
    assert raised.value.message.startswith("file.yaml:")
    return [(entry["line"], entry["field"], entry["message"]) for entry in raised.value.details["errors"]]


def steps(*lines: str) -> str:
    return "\n".join(["name: x", "steps:", *(f"  - {line}" for line in lines)])


def test_a_playbook_becomes_a_plan() -> None:
    made = plan(
        """
name: everything
inputs: {years: [2012, 2013], threshold: 3.5}
env: {LANG: C.UTF-8, DEBUG: true}
defaults: {timeout: 10m, retry: 1}
concurrency: 3
steps:
  - id: load
    name: Load it
    run: load.py ${{ inputs.threshold }}
    timeout: 1h30m
    verify: {sql: select count(*) from days, equals: 1461}
  - id: year
    needs: load
    for_each: ${{ inputs.years }}
    sql: select ${{ item }}
    retry: {attempts: 5, delay: 1m, backoff: 3}
    on_error: mend
  - id: mend
    run: echo "$TENURE_FAILED_OUTPUT"
  - {id: put, needs: [year, load], put: {path: out/chart.png, bucket: reports}, if: "${{ inputs.threshold }} != 0"}
  - {id: tell, needs: put, notify: "done: ${{ steps.put.output }}", on_lost: retry}
"""
    )
    load, year, put, tell = made.steps
    assert (made.env, made.concurrency) == ({"LANG": "C.UTF-8", "DEBUG": "true"}, 3)
    assert (load.effect, load.timeout_s) == (RunScript(script="load.py ${{ inputs.threshold }}"), 5400)
    assert (load.retry.attempts, load.name) == (1, "Load it")
    assert year.for_each is not None
    assert year.for_each.values == ("2012", "2013")
    assert (year.retry.attempts, year.retry.delay_s, year.retry.backoff) == (5, 60, 3)
    assert (year.effect, year.timeout_s) == (RunSql(statement="select ${{ item }}"), 600)
    assert year.on_error == 'echo "$TENURE_FAILED_OUTPUT"'
    assert put.effect == PutObject(path="out/chart.png", bucket="reports", name="chart.png")
    assert tell.effect == Notify(subject="done: ${{ steps.put.output }}")
    assert [step.id for step in made.steps] == ["load", "year", "put", "tell"], "a mender is no step of the plan"


def test_steps_ask_for_leave_are_undone_and_are_work_for_a_brain() -> None:
    made = plan(
        """
name: people
steps:
  - id: fix
    work: Fix ${{ goal }}
    verify:
      - {http: "http://localhost:8080/health", contains: ok}
      - {http: "https://example.org/${{ goal }}", status: 404}
  - {id: serve, run: serve, undo: "stop ${{ steps.fix.output }}", needs: fix, approve: true}
  - {id: free, run: x, approve: false}
  - id: pay
    run: pay
    approve: {text: "Pay?", expires: 1h30m, escalate_to: boss}
"""
    )
    fix, serve, free, pay = made.steps
    assert fix.effect == Work(instructions="Fix ${{ goal }}")
    assert fix.verify == (
        HttpCheck(url="http://localhost:8080/health", contains="ok"),
        HttpCheck(url="https://example.org/${{ goal }}", status=404),
    )
    assert (serve.undo, serve.approval) == ("stop ${{ steps.fix.output }}", Approval())
    assert free.approval is None
    assert pay.approval == Approval(text="Pay?", expires_after_s=5400, escalate_to="boss")


def test_the_example_is_valid() -> None:
    made = PlaybookBrain(EXAMPLE.read_text(), EXAMPLE.name).plan("find the anomalous days", {})
    assert len(made.steps) >= 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(1, "", "a playbook is a mapping")]),
        ("- a", [(1, "", "a playbook is a mapping")]),
        ("name: x", [(1, "steps", "is required")]),
        ("steps: [{id: a, run: x}]", [(1, "name", "is required")]),
        ("name: x\nsteps: []", [(2, "steps", "at least 1 item")]),
        (steps("run: x"), [(3, "steps[0].id", "is required")]),
        (steps("{id: a, rnu: x}"), [(3, "steps[0].rnu", "did you mean 'run'")]),
        (steps("{id: a, run: x, sql: y}"), [(3, "steps[0]", "(found run, sql)")]),
        (steps("{id: 1a, run: x}"), [(3, "steps[0].id", "match pattern")]),
        (steps("{id: a, run: [x]}"), [(3, "steps[0].run", "valid string")]),
        (steps("id: a\n    run: x\n    timeout: soon"), [(5, "steps[0].timeout", "'soon' is not a duration")]),
        (steps("id: a\n    run: x\n    timeout: 0"), [(5, "steps[0].timeout", "greater than 0")]),
        (steps("id: a\n    run: x\n    timeout: 9d"), [(5, "steps[0].timeout", "less than or equal")]),
        (steps("{id: a, run: x, retry: -1}"), [(3, "steps[0].retry", "greater than or equal")]),
        (steps("{id: a, run: x, retry: {attempts: 101}}"), [(3, "steps[0].retry.attempts", "less than or equal")]),
        (
            steps("{id: a, run: x, retry: {attempt: 1}}"),
            [(3, "steps[0].retry", "is req"), (3, "steps[0].retry.attempt", "did")],
        ),
        (
            steps("{id: a, run: x, verify: {sql: y, file: z}}"),
            [(3, "steps[0].verify", "exactly one of sql, run, file")],
        ),
        (steps("{id: a, work: do it}"), [(3, "steps[0]", "work needs verify")]),
        (steps("{id: a, run: x, work: do it}"), [(3, "steps[0]", "(found run, work)")]),
        (
            steps("{id: a, work: '${{ item }}', verify: {file: x}}"),
            [(3, "steps[0].work", "only in a step with for_each")],
        ),
        (steps("{id: a, run: x, verify: {http: ftp://x}}"), [(3, "steps[0].verify", "begins with http://")]),
        (steps("{id: a, run: x, verify: {file: x, status: 200}}"), [(3, "steps[0].verify", "belong to http")]),
        (steps("{id: a, run: x, verify: {http: 'http://x', status: 42}}"), [(3, "steps[0].verify.status", "greater")]),
        (steps("{id: a, run: x, verify: {http: 'http://${{ x }}'}}"), [(3, "steps[0].verify", "is not known")]),
        (steps("{id: a, run: x, approve: {escalate_to: b}}"), [(3, "steps[0].approve", "needs expires")]),
        (steps("{id: a, run: x, approve: {expires: soon}}"), [(3, "steps[0].approve.expires", "not a duration")]),
        (steps("{id: a, run: x, approve: yes please}"), [(3, "steps[0].approve", "valid dictionary")]),
        (steps("{id: a, run: x, approve: {text: '${{ x }}'}}"), [(3, "steps[0].approve.text", "is not known")]),
        (steps("{id: a, run: x, undo: '${{ item }}'}"), [(3, "steps[0].undo", "only in a step with for_each")]),
        (steps("{id: a, put: {path: f}}"), [(3, "steps[0].put.bucket", "is required")]),
        (steps("{id: a, put: {path: f, bucket: Big_Bucket}}"), [(3, "steps[0].put.bucket", "not a valid bucket name")]),
        (steps("{id: a, run: x, on_lost: forget}"), [(3, "steps[0].on_lost", "'ask' or 'retry'")]),
        (steps("{id: a, run: x}", "{id: a, run: y}"), [(4, "steps[1].id", "a step 'a' already, in line 3")]),
        (
            steps("{id: load, run: x}", "{id: b, run: x, needs: [laod]}"),
            [(4, "steps[1].needs[0]", "no step 'laod' (did you mean 'load'?)")],
        ),
        (steps("{id: a, run: x, needs: a}"), [(3, "steps[0].needs", "cannot need itself")]),
        (
            steps("{id: a, run: x, needs: c}", "{id: b, run: x, needs: a}", "{id: c, run: x, needs: b}"),
            [(3, "steps[0].needs", "in a circle: a → c → b → a")],
        ),
        (steps("{id: a, run: x, on_error: b}"), [(3, "steps[0].on_error", "no step 'b'")]),
        (steps("{id: a, run: x, on_error: b}", "{id: b, sql: x}"), [(3, "steps[0].on_error", "must be a run step")]),
        (
            steps("{id: a, run: x, on_error: b}", "{id: b, run: x}", "{id: c, run: x, needs: b}"),
            [(5, "steps[2].needs", "'b' runs only when another step fails")],
        ),
        (steps("{id: a, run: x, for_each: []}"), [(3, "steps[0].for_each", "at least 1 item")]),
        (steps("{id: a, run: x, for_each: [1, 1]}"), [(3, "steps[0].for_each", "given twice")]),
        (steps("{id: a, run: x, for_each: some}"), [(3, "steps[0].for_each", "give a list of values")]),
        (steps("{id: a, run: '${{ item }}'}"), [(3, "steps[0].run", "only in a step with for_each")]),
        (steps("{id: a, run: '${{ inputs.b }}'}"), [(3, "steps[0].run", "no input 'b'")]),
        (steps("{id: a, run: '${{ steps.b.output }}'}", "{id: b, run: x}"), [(3, "steps[0].run", "does not need 'b'")]),
        (steps("{id: a, run: '${{ env.HOME }}'}"), [(3, "steps[0].run", "is not known")]),
        (steps("{id: a, run: x, env: {A: '${{ x }}'}}"), [(3, "steps[0].env.A", "is not known")]),
        ("name: x\nname: y", [(2, "", "'name' is given twice")]),
        (steps("{id: a, run: x, run: y}"), [(3, "", "'run' is given twice")]),
        ("name: x\nsteps: [", [(2, "", "not valid YAML")]),
        ("name: !!python/object:os.system x", [(1, "", "is not allowed")]),
        ("name: x\n<<: {a: b}", [(2, "", "merge keys")]),
        ("? [a, b]\n: c", [(1, "", "a key must be a word")]),
        ("name: .nan\nsteps: []", [(1, "", "not a number")]),
        ("name: x\x00", []),
    ],
)
def test_what_is_wrong_is_said_with_line_and_field(text: str, expected: list[tuple[int, str, str]]) -> None:
    found = problems(text) if expected else []
    if not expected:
        with pytest.raises(PlaybookError):
            plan(text)
    for (line, name, part), (found_line, found_name, message) in zip(expected, found, strict=True):
        assert (found_line, found_name) == (line, name) or found_name.startswith(name)
        assert found_line == line
        assert part in message


def test_everything_wrong_is_said_at_once() -> None:
    found = problems("name: 3\nsteps:\n  - {id: a, run: x, timeout: x}\n  - {id: b}\nextra: 1")
    assert [line for line, _, _ in found] == [1, 3, 4, 5]


def test_inputs_are_checked() -> None:
    text = "name: x\ninputs: {year: null, limit: 3}\nsteps: [{id: a, run: 'echo ${{ inputs.year }}'}]"
    with pytest.raises(InvalidArgument, match="'year' has no default"):
        plan(text)
    with pytest.raises(InvalidArgument, match="did you mean 'year'"):
        plan(text, yaer=1)
    assert plan(text, year=2012).inputs == {"year": 2012, "limit": 3}


def test_limits_on_size_steps_and_nesting() -> None:
    with pytest.raises(PlaybookError, match="bytes"):
        plan("name: x\n#" + "y" * 300_000)
    with pytest.raises(PlaybookError, match="at most 500"):
        plan(steps(*(f"{{id: s{number}, run: x}}" for number in range(501))))
    with pytest.raises(PlaybookError, match="nested too deeply"):
        plan("name: " + "[" * 100 + "]" * 100)
    with pytest.raises(PlaybookError):
        plan("name: " + "[" * 100_000)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    with pytest.raises(PlaybookError, match="more than"):
        plan(bomb)
    many = ", ".join(str(number) for number in range(500))
    with pytest.raises(PlaybookError, match="2500 steps"):
        plan(steps(*(f"{{id: s{number}, run: x, for_each: [{many}]}}" for number in range(5))))


def test_a_long_chain_is_fine() -> None:
    chain = [f"{{id: s{number}, run: x, needs: [{f's{number - 1}' if number else ''}]}}" for number in range(500)]
    assert len(plan(steps(*chain)).steps) == 500


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "name",
                        "steps",
                        "id",
                        "run",
                        "needs",
                        "for_each",
                        "verify",
                        "sql",
                        "retry",
                        "on_error",
                        "env",
                        "x",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=20,
    ).map(str)
)
def test_no_text_does_anything_but_parse_or_raise(text: str) -> None:
    try:
        plan(text)
    except (PlaybookError, InvalidArgument) as error:
        assert error.message  # noqa: PT017 - either outcome is fine


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1d", 86400), ("1.5s", 1.5), (90, 90), (0.5, 0.5)],
)
def test_durations(text: Any, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "5", "5x", "m5", "-5s", "1m1h", True, None, [1]])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_a_cycle_is_found_exactly_when_there_is_one(needs: dict[str, list[str]]) -> None:
    needs = {step: needs.get(step, []) for step in "abcdef"}
    cycle = cycle_in(needs)
    done: set[str] = set()
    while ready := {step for step in needs if step not in done and set(needs[step]) <= done}:
        done |= ready
    assert (cycle is None) == (done == set(needs))
    if cycle:
        assert all(after in needs[before] for before, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    else:
        assert all(set(needs[step]) <= set(upstream_of(needs)[step]) for step in needs)


def test_expressions_are_strict() -> None:
    scope = template.Scope(inputs={"n": 3, "list": [1, "a"]}, outputs={"load": "out"}, item="x", goal="g")
    text = "${{ item }} ${{inputs.n}} ${{ inputs.list }} ${{ steps.load.output }} ${{ goal }} $item ${item} {{ item }}"
    assert template.render(text, scope) == 'x 3 [1, "a"] out g $item ${item} {{ item }}'
    for unknown in ("inputs.m", "steps.other.output", "steps.load", "env.HOME", "", "item.x"):
        with pytest.raises(template.TemplateError):
            template.render(f"${{{{ {unknown} }}}}", scope)
    assert template.render("${{ item }}", template.Scope(item="${{ goal }}")) == "${{ goal }}", "rendered twice"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a == a", True),
        ("'a' == a", True),
        ("a != b", True),
        ("a != a", False),
        ("true", True),
        ("false", False),
        ("0", False),
        ("", False),
        ("No", False),
        ("${{ item }} == x", True),
        ("${{ item }} == y", False),
    ],
)
def test_conditions(condition: str, expected: bool) -> None:
    assert template.holds(condition, template.Scope(item="x")) is expected


def test_the_json_schema_describes_playbooks() -> None:
    schema = json_schema()
    assert set(schema["required"]) == {"name", "steps"}
    assert {"if", "approve", "undo", "work"} <= set(schema["$defs"]["Step"]["properties"])
    assert {"http", "status", "contains"} <= set(schema["$defs"]["Check"]["properties"])
    assert {"type": "boolean"} in schema["$defs"]["Step"]["properties"]["approve"]["anyOf"]
