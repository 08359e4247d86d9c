"""Idempotency keys: the same for the same effect, whoever computes them, and different for every other.

They are names of files and parts of URLs: letters, digits, `_`, `.`, `-`, at most `KEY_CHARS_MAX`.
"""

from __future__ import annotations

import hashlib
import re

from tenure.work.state import Node

KEY_CHARS_MAX = 120
_LABEL_CHARS_MAX = 40
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def effect_key(run_id: str, node: str, attempt: int) -> str:
    """Of one attempt at a node's effect. Readable, and unique by the digest of the node's full name."""
    label = _UNSAFE.sub("-", node).strip("-")[:_LABEL_CHARS_MAX]
    digest = hashlib.sha256(node.encode()).hexdigest()[:8]
    return f"{run_id}.{label}.{digest}.{attempt}"


def check_key(run_id: str, node: Node, index: int) -> str:
    """Of a check's command. Anew after each recovery, since a check whose command was lost has to be made again."""
    return f"{effect_key(run_id, node.id, node.attempt)}.check{index}.{len(node.rungs)}"


def snapshot_key(run_id: str, node: str, attempt: int, *, before: bool) -> str:
    """Of the snapshot before or after one attempt."""
    return f"{effect_key(run_id, node, attempt)}.{'before' if before else 'after'}"


def mend_key(run_id: str, node: Node) -> str:
    """Of the `on_error` script or the restore, for this entry of its rung."""
    return f"{effect_key(run_id, node.id, node.attempt)}.mend{len(node.rungs)}"
