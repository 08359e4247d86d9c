"""Who needs whom. Pure, and without recursion: a playbook may be one long chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Needs = Mapping[str, Sequence[str]]


def cycle_in(needs: Needs) -> list[str] | None:
    """One circle, as the steps on it in the order in which they need each other; None when there is none."""
    finished: set[str] = set()
    for start in needs:
        trail: list[str] = []
        on_trail: set[str] = set()
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            step, leaving = todo.pop()
            if leaving:
                on_trail.discard(trail.pop())
                finished.add(step)
            elif step in on_trail:
                return trail[trail.index(step) :]
            elif step not in finished:
                trail.append(step)
                on_trail.add(step)
                todo.append((step, True))
                todo.extend((need, False) for need in needs[step])
    return None


def upstream_of(needs: Needs) -> dict[str, list[str]]:
    """For each step all those that are done before it begins. `needs` must have no circle."""
    found: dict[str, list[str]] = {}
    for start in needs:
        seen: dict[str, None] = {}
        todo = list(needs[start])
        while todo:
            step = todo.pop()
            if step not in seen:
                seen[step] = None
                todo.extend(needs[step])
        found[start] = list(seen)
    return found
