"""The embedder that is always there: no network, no download, no model.

Words, pairs of words and parts of words are hashed into a vector (feature hashing, signed). So texts are alike that have words,
inflections or misspelt words in common. It knows no synonyms and no meaning: for "car" it finds "cars" and not "automobile". A
model behind an OpenAI-compatible address does; see `openai.py`.
"""

from __future__ import annotations

import asyncio
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

from tenure.data.query.search.embedder import TEXT_CHARS_MAX, TEXTS_MAX, Embedder
from tenure.errors import InvalidArgument

NAME = "local"
DIMENSION = 512
PART_CHARS = (3, 4)
PART_WEIGHT, PAIR_WEIGHT, COMMON_WEIGHT = 0.35, 0.6, 0.15
WORD_CHARS_MAX = 40
_WORD = re.compile(r"\w+")
_COMMON = frozenset(
    _WORD.findall(
        "a about all also am an and any are as at be because been but by can could der des die das did do does dem den du ein "
        "eine er es for from had has have he her his how i if ich im in into is ist it its la le les mit my no nor not of on or "
        "our out over per she sie so some such than that the their them then there these they this to too und under up very von "
        "was we were what when where which who why will with would you your zu zum zur"
    )
)
"""Words that say little, of English and German: a stand-in for how rare a word is, which one text alone cannot tell."""


class HashingEmbedder(Embedder):
    @property
    def name(self) -> str:
        return f"{NAME}:{DIMENSION}"

    async def dimension(self) -> int:
        return DIMENSION

    async def close(self) -> None:
        """It holds nothing."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if len(texts) > TEXTS_MAX:
            raise InvalidArgument(f"At most {TEXTS_MAX} texts are embedded at once.")
        return await asyncio.to_thread(lambda: [vector_of(text) for text in texts])


def vector_of(text: str) -> list[float]:
    """Pure."""
    vector = [0.0] * DIMENSION
    counts = Counter[str]()
    weights: dict[str, float] = {}
    for feature, weight in _features(text[:TEXT_CHARS_MAX]):
        counts[feature] += 1
        weights[feature] = weight
    for feature, count in counts.items():
        place = zlib.crc32(feature.encode("utf-8", "replace"))
        sign = 1.0 if place & 0x80000000 else -1.0
        vector[place % DIMENSION] += sign * weights[feature] * (1.0 + math.log(count))
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:
        return [1.0, *vector[1:]]  # a vector without a direction is like none
    return [value / length for value in vector]


def _features(text: str) -> Iterator[tuple[str, float]]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    words = [word[:WORD_CHARS_MAX] for word in _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))]
    before = ""
    for word in words:
        weight = COMMON_WEIGHT if word in _COMMON else 1.0
        yield f"w {word}", weight
        if before:
            yield f"p {before} {word}", PAIR_WEIGHT * weight
        before = word
        if weight == 1.0:
            framed = f"^{word}$"
            for size in PART_CHARS:
                for at in range(len(framed) - size + 1):
                    yield f"c {framed[at : at + size]}", PART_WEIGHT
