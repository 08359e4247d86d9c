"""S3's XML, out and in. What comes in is hostile: no DTD, no entities, bounded."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from collections.abc import Iterator

from tenure.data.s3.errors import S3Error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
XML_BYTES_MAX = 4 * 1024 * 1024
"""Of what a request may send: a thousand deletions or ten thousand parts."""
ELEMENTS_MAX = 100_000

_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


class Element(str):
    """XML text of one element; anything else is text and gets escaped."""


def element(name: str, *content: str | int | bool | None, **attributes: str) -> Element:
    """`<name>content</name>`. None among the content is left out. Attributes are given as `xmlns_xsi="…"`, "_" for ":"."""
    inside = "".join(part if isinstance(part, Element) else _text(part) for part in content if part is not None)
    told = "".join(f' {key.replace("_", ":", 1)}="{_text(value)}"' for key, value in attributes.items())
    return Element(f"<{name}{told}>{inside}</{name}>")


def render(root: Element, *, namespace: str = NAMESPACE) -> bytes:
    """The whole document. The namespace goes into the root."""
    text = str(root)
    if namespace:
        end = min(found for found in (text.find(">"), text.find(" ")) if found > 0)
        text = f'{text[:end]} xmlns="{namespace}"{text[end:]}'
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


def _text(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # What XML has no way to say goes as a reference, as S3 does it; clients ask for encoding-type=url where that matters.
    return "".join(
        _ESCAPED.get(char) or (f"&#x{ord(char):x};" if ord(char) < 32 and char not in "\t\n" else char)
        for char in str(value)
    )


def parse(body: bytes, root: str) -> Tree.Element:
    """The document's root, which has to be `root`; names are without namespaces. Raises `S3Error` MalformedXML."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        found: Tree.Element = fromstring(body, forbid_dtd=True)
    except (Tree.ParseError, DefusedXmlException, ValueError, LookupError):
        raise S3Error("MalformedXML") from None
    for count, one in enumerate(found.iter()):
        if count > ELEMENTS_MAX:
            raise S3Error("MalformedXML", f"There are more than {ELEMENTS_MAX} elements.")
        one.tag = one.tag.rpartition("}")[2]
    if found.tag != root:
        raise S3Error("MalformedXML", f"The root of this is {root}.")
    return found


def text_of(parent: Tree.Element, name: str) -> str | None:
    """Of the first child of this name; None when there is none."""
    child = parent.find(name)
    return None if child is None else (child.text or "").strip()


def children(parent: Tree.Element, name: str) -> Iterator[Tree.Element]:
    return (child for child in parent if child.tag == name)
