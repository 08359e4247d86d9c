"""Archives in S3, or in what speaks as S3 does. All calls block.

Address and credentials come from the environment of this process (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) or from AWS's profile files (AWS_PROFILE,
AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE), which are read anew each time. They stand in no argument and no message.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore import exceptions as s3_errors
from obstore.store import S3Store

from tenure.errors import InvalidArgument, NotFound, StorageError

PART_BYTES = 32 * 1024 * 1024
"""Of a multipart upload, which may have 10,000: so an archive may have 320 GB."""
PARTS_AT_ONCE = 2
READ_BYTES = 4 * 1024 * 1024
CONNECT_S = 10
REQUEST_S = 300
RETRY_S = 120
RETRIES_MAX = 5
LISTED_MAX = 10_000
REGION_DEFAULT = "us-east-1"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_KEY_BYTES_MAX = 1024
_SCHEME = "s3://"


@dataclass(frozen=True)
class Place:
    """`key` ends with "/", or is empty, for a place that holds archives."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"

    @property
    def is_directory(self) -> bool:
        return not self.key or self.key.endswith("/")

    @property
    def directory(self) -> Place:
        return Place(self.bucket, self.key[: self.key.rfind("/") + 1])

    def within(self, name: str) -> Place:
        return Place(self.bucket, self.key + name)


def is_s3(text: str) -> bool:
    return text.startswith(_SCHEME)


def parse_place(text: str) -> Place:
    """Raises `InvalidArgument`."""
    bucket, _, key = text.removeprefix(_SCHEME).partition("/")
    bad_key = len(key.encode("utf-8", "replace")) > _KEY_BYTES_MAX or not key.isprintable()
    bad_key = bad_key or any(part in (".", "..") for part in key.split("/")) or "//" in key or key.startswith("/")
    if not is_s3(text) or not _BUCKET.match(bucket) or bad_key:
        raise InvalidArgument(
            f"{text[:200]!r} is not the address of an object in S3.",
            hint="Write it as s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ to have it named.",
        )
    return Place(bucket, key)


# --- settings -----------------------------------------------------------------------------------------------------------
_FROM_PROFILE = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}


def configuration(environ: Mapping[str, str]) -> dict[str, Any]:
    """What `S3Store` is to be told: what the environment does not say is taken of the profile."""
    found = _of_profile(environ)
    for name, key in (
        ("AWS_ACCESS_KEY_ID", "access_key_id"),
        ("AWS_SECRET_ACCESS_KEY", "secret_access_key"),
        ("AWS_SESSION_TOKEN", "session_token"),
        ("AWS_DEFAULT_REGION", "region"),
        ("AWS_REGION", "region"),
        ("AWS_ENDPOINT_URL", "endpoint"),
        ("AWS_ENDPOINT_URL_S3", "endpoint"),
    ):
        if environ.get(name):
            found[key] = environ[name]
    if "AWS_ACCESS_KEY_ID" in environ and "AWS_SESSION_TOKEN" not in environ:
        found.pop("session_token", None)  # of other credentials
    found.setdefault("region", REGION_DEFAULT)
    return found


def _of_profile(environ: Mapping[str, str]) -> dict[str, Any]:
    home = Path(environ.get("HOME") or "/root") / ".aws"
    profile = environ.get("AWS_PROFILE") or "default"
    found: dict[str, Any] = {}
    for path, section in (
        (environ.get("AWS_CONFIG_FILE") or home / "config", profile if profile == "default" else f"profile {profile}"),
        (environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise StorageError(f"The profile file {path} cannot be read: {type(error).__name__}.") from None
        if parser.has_section(section):
            found |= {key: parser[section][name] for name, key in _FROM_PROFILE.items() if parser[section].get(name)}
    return found


def _store(bucket: str) -> S3Store:
    config = configuration(os.environ)
    plain = str(config.get("endpoint", "")).startswith("http://")
    return S3Store(
        bucket,
        config=config,  # pyright: ignore[reportArgumentType]
        client_options={
            "allow_http": plain,
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=REQUEST_S),
        },
        retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S)},
    )


@contextmanager
def _told(doing: str, place: Place) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"There is nothing at {place}, or no such bucket.") from error
    except s3_errors.BaseError as error:
        text = _without_secrets(str(error))
        if "NoSuchBucket" in text:
            raise NotFound(f"There is no bucket {place.bucket}.") from error
        denied = isinstance(error, s3_errors.PermissionDeniedError | s3_errors.UnauthenticatedError)
        if denied or re.search(r"code: 40[13]\b", text):
            raise StorageError(f"{doing} {place} is not allowed with these credentials.") from error
        raise StorageError(f"{doing} {place} failed: {text}") from error


def _without_secrets(text: str) -> str:
    """An error's text, without what must not stand in a message; one line."""
    config = configuration(os.environ)
    for name in ("access_key_id", "secret_access_key", "session_token"):
        if config.get(name):
            text = text.replace(str(config[name]), "***")
    return " ".join(text.split("Debug source", 1)[0].split())[:400]


# --- objects ------------------------------------------------------------------------------------------------------------
def upload(place: Place, pieces: Iterable[bytes]) -> None:
    """Stores an object made of `pieces`: it is there, whole, when this returns, and not before. An error of `pieces` is
    passed on, and nothing is there then. Raises `NotFound` for a bucket that is not there, `StorageError`."""
    failure: list[BaseException] = []

    def guarded() -> Iterator[bytes]:
        try:
            yield from pieces
        except BaseException as error:
            failure.append(error)
            raise

    try:
        with _told("Writing", place):
            obstore.put(
                _store(place.bucket),
                place.key,
                guarded(),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
                use_multipart=True,
            )
    except BaseException:
        if failure:  # not in the words of the store
            raise failure[0] from None
        raise


class Reader:
    """An object, from its beginning on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        with _told("Reading", place):
            result = obstore.get(_store(place.bucket), place.key)
            self.size_bytes = int(result.meta["size"])
            self._stream = iter(result.stream(min_chunk_size=READ_BYTES))
        self._rest: Any = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Less than `size` bytes at the end only."""
        parts: list[bytes] = []
        while size:
            if not self._rest:
                with _told("Reading", self._place):
                    self._rest = memoryview(bytes(next(self._stream, b"")))
                if not self._rest:
                    break
            piece, self._rest = self._rest[:size], self._rest[size:]
            parts.append(bytes(piece))
            size -= len(piece)
        return b"".join(parts)


def beginning(place: Place, size: int) -> bytes:
    """The first `size` bytes, or all when there are fewer."""
    with _told("Reading", place):
        result = obstore.get(_store(place.bucket), place.key, options={"range": (0, size)})
        return bytes(result.bytes())


def size_bytes(place: Place) -> int:
    """Of the object there. Raises `NotFound`."""
    with _told("Reading", place):
        return int(obstore.head(_store(place.bucket), place.key)["size"])


def listed(place: Place) -> list[Place]:
    """What lies in a directory and below, `LISTED_MAX` at most."""
    found: list[Place] = []
    with _told("Listing", place):
        pages: Any = obstore.list(_store(place.bucket), place.key or None)  # pyright: ignore[reportUnknownMemberType]
        for page in pages:
            found += [Place(place.bucket, str(item["path"])) for item in page]
            if len(found) >= LISTED_MAX:
                break
    return found


def delete(place: Place) -> None:
    """Not an error when there is nothing."""
    with _told("Deleting", place):
        try:
            obstore.delete(_store(place.bucket), place.key)
        except FileNotFoundError:
            return
