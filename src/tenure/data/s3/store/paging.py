"""A page of a listing, of keys in their order: prefixes, delimiters, where it goes on. Pure but for what `versions_of` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tenure.data.s3.store.base import Page, Version, Wanted


def page_of(
    wanted: Wanted,
    keys_after: Callable[[str, bool], Iterator[str]],
    versions_of: Callable[[str], Sequence[Version]],
) -> Page:
    """`keys_after(key, inclusive)` gives keys of the prefix in order. `versions_of` a key gives those that are listed: all,
    the newest first, or at most the latest; a key that has none is not there."""
    if wanted.limit == 0 or wanted.keys_prefix is None:
        return Page((), (), False)
    found, prefixes = list[Version](), list[str]()
    start, inclusive = wanted.after, bool(wanted.after_version)
    last = (wanted.after, "")
    while True:
        jump = ""
        for key in keys_after(start, inclusive):
            common = _common(key, wanted)
            if common:
                if wanted.after.startswith(common):  # the page before ended with it, or in it
                    jump = common
                    break
                if not versions_of(key):
                    continue
                if len(found) + len(prefixes) >= wanted.limit:
                    return Page(found, prefixes, True, *last)
                prefixes.append(common)
                last, jump = (common, ""), common
                break
            versions = versions_of(key)
            if wanted.after_version and key == wanted.after:
                versions = _past(versions, wanted.after_version)
            for version in versions:
                if len(found) + len(prefixes) >= wanted.limit:
                    return Page(found, prefixes, True, *last)
                found.append(version)
                last = (key, version.version_id)
        if not jump:
            return Page(found, prefixes, False)
        start, inclusive = past_prefix(jump), True
        if not start:
            return Page(found, prefixes, False)


def past_prefix(prefix: str) -> str:
    """The least text that is more than all that begin with `prefix`; empty when there is none."""
    while prefix:
        code = ord(prefix[-1])
        if code < 0x10FFFF:
            following = 0xE000 if code + 1 == 0xD800 else code + 1  # there are no surrogates in a key
            return prefix[:-1] + chr(following)
        prefix = prefix[:-1]
    return ""


def _common(key: str, wanted: Wanted) -> str:
    if not wanted.delimiter:
        return ""
    place = key.find(wanted.delimiter, len(wanted.prefix))
    return "" if place < 0 else key[: place + len(wanted.delimiter)]


def _past(versions: Sequence[Version], version_id: str) -> Sequence[Version]:
    for place, version in enumerate(versions):
        if version.version_id == version_id:
            return versions[place + 1 :]
    # It is gone: those that are older than it, which their ids tell.
    return [version for version in versions if version.version_id < version_id]
