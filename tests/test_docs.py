"""The documents say what is there: every example is a playbook that the loader takes, every field and link is real."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tenure.brains.playbook import PlaybookBrain, parse, schema
from tenure.cli import reference

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
PLAYBOOKS = (ROOT / "docs" / "playbooks.md").read_text()
SHAPES = (
    schema.Playbook,
    schema.Defaults,
    schema.Step,
    schema.Retry,
    schema.Put,
    schema.NotifyMessage,
    schema.Approve,
    schema.Check,
    schema.SqlValues,
    schema.OnError,
)


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every fenced block of that kind."""
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            yield f"{document.relative_to(ROOT)}:{line}", match[1]


def fields() -> set[str]:
    return {field.alias or name for shape in SHAPES for name, field in shape.model_fields.items()}


@pytest.mark.parametrize(("where", "text"), list(blocks("yaml")))
def test_every_playbook_in_the_documents_can_be_run(where: str, text: str) -> None:
    inputs = {name: "given" for name, value in parse(text, where).inputs.items() if value is None}
    assert PlaybookBrain(text, where).plan("goal", inputs).steps


def test_every_field_of_a_playbook_is_documented_and_shown_in_an_example() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", PLAYBOOKS, re.MULTILINE))
    used = {key for _, text in blocks("yaml") for key in _keys(yaml.safe_load(text))}
    in_prose = {"step"}  # written as the step's bare id
    assert fields() - in_prose <= rows
    assert fields() - in_prose <= used | {"goal", "name", "on_failure", "defaults", "backoff"}


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield str(key)  # pyright: ignore[reportUnknownArgumentType]
            yield from _keys(inner)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _keys(inner)  # pyright: ignore[reportUnknownArgumentType]


def test_limits_and_defaults_in_the_reference_are_those_of_the_code() -> None:
    from tenure.work import effects, ladder, plan

    for sentence in (
        f"1 to {plan.CONCURRENCY_MAX} | {plan.CONCURRENCY_DEFAULT} |",
        f"list, 1 to {plan.STEPS_MAX} |",
        f"{plan.NODES_MAX:,} at most",
        f"| 0 to {plan.RETRIES_MAX} | {plan.RETRIES_DEFAULT} |",
        f"| {plan.RETRY_DELAY_S_DEFAULT:g} s |",
        f"| {plan.STEP_TIMEOUT_S_DEFAULT / 3600:g} hour | For one attempt",
        f"up to {plan.STEP_TIMEOUT_S_MAX / 86400:g} days",
        f"1 to {plan.FOR_EACH_VALUES_MAX} of up to {plan.ITEM_CHARS_MAX} characters",
        f"The last {effects.OUTPUT_BYTES_MAX // 1024} KiB of what it prints",
        f"rows as JSON ({effects.ROWS_MAX} at\nmost)",
        f"when there is one | {ladder.SELF_CORRECTIONS_MAX} |",
        f"does not answer | {ladder.RECONNECTS_MAX} |",
        f"a sandbox that died | {ladder.RESTARTS_MAX} |",
    ):
        assert sentence in PLAYBOOKS, sentence


def test_every_tenure_command_in_the_documents_exists() -> None:
    known = {line for line, _ in reference.commands()}
    groups = {line for line, found in reference.commands() if hasattr(found, "commands")}
    shown = [(where, line) for where, text in blocks("sh") for line in text.splitlines()]
    shown += [(str(d), code) for d in DOCUMENTS for code in re.findall(r"`(tenure [^`]+)`", d.read_text())]
    checked = 0
    for where, line in shown:
        words = line.split()
        if words[:1] != ["tenure"] or len(words) < 2 or not re.fullmatch(r"[a-z-]+", words[1]):
            continue
        command = " ".join(
            words[: 3 if f"tenure {words[1]}" in groups and len(words) > 2 and words[2].isalpha() else 2]
        )
        assert command in known, f"{where}: {line}"
        checked += 1
    assert checked > 20


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.relative_to(ROOT)}: {target}"
