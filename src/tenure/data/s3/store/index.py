"""The keys of a bucket in their order, kept in memory: of the names of its files, which have no order.

Made of the files when it is first asked for, and thrown away whenever the directory may be another; nothing depends on it but the
time of a listing.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

KEYS_MAX = 2_000_000
"""Of all buckets of a store; the one that was not asked for longest goes."""
END = "\U0010ffff"


class Keys:
    """Of one store. Its methods may be called in any thread."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._sorted: OrderedDict[str, list[str]] = OrderedDict()
        self._lock = threading.RLock()
        self._keys_max = keys_max

    def forget(self, bucket: str | None = None) -> None:
        with self._lock:
            if bucket is None:
                self._sorted.clear()
            else:
                self._sorted.pop(bucket, None)

    def add(self, bucket: str, key: str) -> None:
        with self._lock:
            keys = self._sorted.get(bucket)
            if keys is not None:
                place = bisect_left(keys, key)
                if place == len(keys) or keys[place] != key:
                    insort(keys, key)

    def remove(self, bucket: str, key: str) -> None:
        with self._lock:
            keys = self._sorted.get(bucket)
            if keys is not None:
                place = bisect_left(keys, key)
                if place < len(keys) and keys[place] == key:
                    del keys[place]

    def load(self, bucket: str, read: Callable[[], Iterable[str]]) -> None:
        """Nothing may change the bucket meanwhile."""
        with self._lock:
            if bucket in self._sorted:
                self._sorted.move_to_end(bucket)
                return
            self._sorted[bucket] = sorted(set(read()))
            while len(self._sorted) > 1 and sum(map(len, self._sorted.values())) > self._keys_max:
                self._sorted.popitem(last=False)

    def has(self, bucket: str) -> bool:
        with self._lock:
            return bucket in self._sorted

    def count(self, bucket: str) -> int:
        with self._lock:
            return len(self._sorted.get(bucket, ()))

    def after(self, bucket: str, key: str, prefix: str, *, inclusive: bool = False) -> Iterator[str]:
        """Keys that begin with `prefix` from `key` on, in order, as of each step."""
        at = max(key, prefix)
        find = bisect_left if inclusive or at != key or not key else bisect_right
        while True:
            with self._lock:
                keys = self._sorted.get(bucket, [])
                place = find(keys, at)
                batch = keys[place : place + 1000]
            for one in batch:
                if not one.startswith(prefix):
                    return
                yield one
            if len(batch) < 1000:
                return
            at, find = batch[-1], bisect_right
