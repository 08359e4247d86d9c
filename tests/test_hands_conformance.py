"""The kit for `Hands`, on the fake: the other tests of the work engine stand on it."""

from __future__ import annotations

from pathlib import Path

from tenure.testing.fake_hands import FakeHands
from tenure.testing.hands_conformance import CHECKS, DISRUPTIVE_CHECKS, check_hands


async def test_fake_hands_keep_the_contract(tmp_path: Path) -> None:
    hands = FakeHands(tmp_path)
    hands.add_agent("analyst")
    held = await check_hands(hands, "analyst")
    hands.close()
    assert len(held) == len(CHECKS) + len(DISRUPTIVE_CHECKS)
