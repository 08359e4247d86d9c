"""The contracts of an `Embedder`, one function each, numbered. `check_embedder(embedder)` runs all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from tenure.data.query.search.embedder import DIMENSION_MAX, TEXT_CHARS_MAX, TEXTS_MAX, Embedder
from tenure.errors import UsageError

PRECISION = 1e-4
TEXTS = ("The invoice of March was paid late", "", "été ☃ 日本語", "a", "The invoice of March was paid late")


async def e01_one_vector_for_each_text(embedder: Embedder) -> None:
    """As many vectors as texts, in their order, each of the same dimension; none for none."""
    dimension = await embedder.dimension()
    assert 1 <= dimension <= DIMENSION_MAX
    found = await embedder.embed(TEXTS)
    assert [len(vector) for vector in found] == [dimension] * len(TEXTS)
    alone = (await embedder.embed([TEXTS[3]]))[0]
    assert _near(alone, found[3])
    assert await embedder.embed([]) == []


async def e02_vectors_have_length_one(embedder: Embedder) -> None:
    """Of every text, the empty one too."""
    for vector in await embedder.embed(TEXTS):
        assert all(math.isfinite(value) for value in vector)
        assert abs(_dot(vector, vector) - 1) < PRECISION


async def e03_the_same_text_the_same_vector(embedder: Embedder) -> None:
    """In one call and in another."""
    first, *_, last = await embedder.embed(TEXTS)
    assert _near(first, last)
    assert _near(first, (await embedder.embed([TEXTS[0]]))[0])


async def e04_what_is_alike_points_alike(embedder: Embedder) -> None:
    """A text is nearer to one about the same thing than to one about another."""
    text, alike, other = await embedder.embed([TEXTS[0], "late payment of invoices", "a cat sleeps on the warm sofa"])
    assert _dot(text, alike) > _dot(text, other)


async def e05_a_long_text_is_its_beginning(embedder: Embedder) -> None:
    """What comes after `TEXT_CHARS_MAX` makes no difference, and no error."""
    text = "word " * (TEXT_CHARS_MAX // 5)
    first, second = await embedder.embed([text, text + "more " * 10_000])
    assert _near(first, second)


async def e06_as_many_as_may_be_and_no_more(embedder: Embedder) -> None:
    """`TEXTS_MAX` texts at once; more raise `UsageError`."""
    assert len(await embedder.embed(["x"] * TEXTS_MAX)) == TEXTS_MAX
    try:
        await embedder.embed(["x"] * (TEXTS_MAX + 1))
    except UsageError:
        return
    raise AssertionError("more than TEXTS_MAX texts were taken")


async def e07_at_the_same_time(embedder: Embedder) -> None:
    """Calls may overlap, and each gets its own."""
    texts = [f"text number {number}" for number in range(8)]
    found = await asyncio.gather(*(embedder.embed([text]) for text in texts))
    together = await embedder.embed(texts)
    assert all(_near(one[0], other) for one, other in zip(found, together, strict=True))


CHECKS: tuple[Callable[[Embedder], Awaitable[None]], ...] = (
    e01_one_vector_for_each_text,
    e02_vectors_have_length_one,
    e03_the_same_text_the_same_vector,
    e04_what_is_alike_points_alike,
    e05_a_long_text_is_its_beginning,
    e06_as_many_as_may_be_and_no_more,
    e07_at_the_same_time,
)


async def check_embedder(embedder: Embedder) -> list[str]:
    """Names of the contracts that hold. Raises `AssertionError`, with the contract's name, at the first that does not."""
    held: list[str] = []
    for check in CHECKS:
        try:
            await check(embedder)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {check.__doc__} {error}") from error
        held.append(check.__name__)
    return held


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _near(one: list[float], other: list[float]) -> bool:
    return all(abs(a - b) < PRECISION for a, b in zip(one, other, strict=True))
