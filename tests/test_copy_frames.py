"""Copied rows go from one PostgreSQL to another as they come, and none is looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenure.postgres import wire


@given(st.lists(st.binary(max_size=20), max_size=8), st.data())
def test_copied_data_is_passed_on_whole_wherever_it_is_cut(rows: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(wire.message(b"d", row) for row in rows)
    buffer, left, passed = b"", 0, b""
    whole = stream + wire.message(b"c", b"")
    at = 0
    while at < len(whole):
        step = data.draw(st.integers(1, len(whole) - at))
        buffer, at = buffer + whole[at : at + step], at + step
        end, left = wire.copy_data_end(buffer, left)
        passed, buffer = passed + buffer[:end], buffer[end:]
        assert left == 0 or buffer == b""
    assert passed == stream
    assert wire.take_message(buffer) == (b"c", b"", b"")
