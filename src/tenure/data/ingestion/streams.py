"""From the bytes of a file to text, in pieces: decompressed within bounds, decoded from whatever encoding they are in."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from typing import IO, Any, Final, cast

from tenure.errors import InvalidArgument, TooLarge

CONTENT_BYTES_MAX = 64 * 1024**3
"""Of a file after decompression."""
RATIO_MAX = 200
RATIO_FREE_BYTES = 256 * 1024**2
"""Up to here a file may grow by any factor: a small one of zeros is no attack."""
READ_BYTES = 1024 * 1024
WINDOW_BYTES_MAX = 128 * 1024**2
"""Of zstd: the memory that a file may ask its reader for."""
ZSTD_BYTES = 1024
"""Given to its decoder at once: of hostile ones each byte may become 32 KiB."""
LZMA_BYTES_MAX = 96 * 1024**2
SAMPLE_BYTES = 1024 * 1024
HEAD_BYTES = 8192

COMPRESSIONS: Final = ("gzip", "zstd", "bz2", "xz", "zip")
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
}
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BROKEN = (OSError, EOFError, zipfile.BadZipFile, lzma.LZMAError, NotImplementedError, RuntimeError)


def compression_of(file: IO[bytes]) -> str | None:
    """By its first bytes. A spreadsheet is a zip, too, and not told as one."""
    head = file.read(8)
    file.seek(0)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    return None if found == "zip" and _is_sheet(file) else found


def _is_sheet(file: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist()[:10_000])
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False
    finally:
        file.seek(0)
    return "[Content_Types].xml" in names or "content.xml" in names


class Bounded(io.RawIOBase):
    """What `inner` yields, up to what a file of `packed_bytes` may become. Raises `TooLarge` beyond, `InvalidArgument` for what
    is damaged."""

    def __init__(self, inner: IO[bytes], packed_bytes: int, name: str) -> None:
        self._inner, self._name = inner, name
        self._left = min(CONTENT_BYTES_MAX, max(RATIO_FREE_BYTES, RATIO_MAX * packed_bytes))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))
        try:
            data = self._inner.read(len(view))
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, _BROKEN) or type(error).__module__.startswith("zstandard"):
                raise InvalidArgument(f"The {self._name} file is damaged or cut off: {str(error)[:200]}.") from error
            raise
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(
                "The file becomes much larger when it is decompressed than a file may.",
                hint=f"At most {RATIO_MAX} times its size, and {CONTENT_BYTES_MAX >> 30} GiB. Decompress it before.",
            )
        view[: len(data)] = data
        return len(data)


def decompressed(file: IO[bytes], name: str | None, packed_bytes: int) -> IO[bytes]:
    """The content of a file packed by one of `COMPRESSIONS`; the file itself for None."""
    if name is None:
        return file
    return io.BufferedReader(Bounded(_opened(file, name), packed_bytes, name), READ_BYTES)


def _opened(file: IO[bytes], name: str) -> IO[bytes]:
    match name:
        case "gzip":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb"))
        case "bz2":
            return cast("IO[bytes]", bz2.BZ2File(file, "rb"))
        case "xz":
            return cast("IO[bytes]", _Xz(file))
        case "zip":
            return _member(file)
        case _:
            return cast("IO[bytes]", _Zstd(file))


class _Xz:
    """`lzma.LZMAFile` with a limit on memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder = file, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=LZMA_BYTES_MAX)

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._file.read(READ_BYTES)
                if not rest.strip(b"\0"):
                    return b""
                self._decoder = self._new()
            elif self._decoder.needs_input:
                rest = self._file.read(READ_BYTES)
                if not rest:
                    raise EOFError("it ends too early")
            else:
                rest = b""
            if data := self._decoder.decompress(rest, size):
                return data


class _Zstd:
    """Frame by frame: the library's own reader takes a frame that was cut off for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file, self._library = file, zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        self._decoder: Any = None
        self._packed, self._ready = b"", memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._ready:
            if not self._packed:
                self._packed = self._file.read(ZSTD_BYTES)
            if not self._packed:
                if self._decoder is not None:
                    raise EOFError("it ends too early")
                return b""
            if self._decoder is None:
                self._decoder = self._library.decompressobj()
            self._ready = memoryview(self._decoder.decompress(self._packed))
            self._packed = self._decoder.unused_data if self._decoder.eof else b""
            if self._decoder.eof:
                self._decoder = None
        piece, self._ready = self._ready[:size], self._ready[size:]
        return bytes(piece)


def _member(file: IO[bytes]) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(file)
        inside = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        if len(inside) != 1:
            raise InvalidArgument(
                f"The zip has {len(inside)} files in it; one is needed.", hint="Unpack it, and load them one by one."
            )
        return archive.open(inside[0])
    except _BROKEN as error:
        raise InvalidArgument(f"The zip file cannot be read: {str(error)[:200]}.") from error


# --- encodings ----------------------------------------------------------------------------------------------------------
def encoding_of(sample: bytes) -> str:
    """By a byte order mark, else what the bytes can be: UTF-8, UTF-16 without a mark, and Windows' Latin for the rest."""
    for mark, name in _BOMS:
        if sample.startswith(mark):
            return name
    even, odd = sample[0:4096:2].count(0), sample[1:4096:2].count(0)
    pairs = min(len(sample), 4096) // 2
    if pairs and max(even, odd) > 0.6 * pairs and min(even, odd) < 0.1 * pairs:
        return "utf-16-le" if odd > even else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def check_encoding(name: str) -> str:
    """The name by which Python knows it. Raises `InvalidArgument`."""
    try:
        info = codecs.lookup(name)
        "".encode(info.name)
        b"".decode(info.name)
    except (LookupError, UnicodeError, ValueError, TypeError):
        raise InvalidArgument(
            f"{name[:40]!r} is not an encoding known here.", hint="Write utf-8, latin-1, cp1252, utf-16, …"
        ) from None
    return info.name


def errors_of(encoding: str) -> str:
    """What is of no character becomes half a surrogate pair, so that its row is told apart and no other."""
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def texts(file: IO[bytes], encoding: str) -> Iterator[str]:
    """All of a file, in pieces. Raises `InvalidArgument` for bytes that cannot be told apart from the rest."""
    decoder = codecs.getincrementaldecoder(encoding)(errors_of(encoding))
    more = True
    while more:
        data = file.read(READ_BYTES)
        more = bool(data)
        try:
            text = decoder.decode(data, final=not more)
        except UnicodeError as error:
            raise InvalidArgument(
                f"The file is not {encoding}: {str(error)[:200]}.", hint="Say what it is with --encoding."
            ) from error
        if text:
            yield text


def well_formed(text: str) -> bool:
    """Whether PostgreSQL can hold it: no zero character, no byte that is of no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
