"""JSON schemas of arguments, in the part of the language that OpenAI's, Anthropic's and Google's tools have in common. Pure."""

from __future__ import annotations

import functools
from typing import Any, cast

from pydantic import BaseModel

_LEFT_OUT = frozenset({"title", "default"})
"""Titles repeat names, and a default that is null or empty misleads more than it helps: descriptions say what is meant."""


@functools.cache
def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """An object's schema without references, titles and defaults; made once, so do not change it. Raises `TypeError` for a model
    that needs more than that."""
    schema = model.model_json_schema()
    if "$defs" in schema:
        raise TypeError(f"{model.__name__} has models in it, which not every provider's tools take.")
    plain = _plain(schema)
    plain.pop("description", None)  # the tool has its own
    plain.setdefault("properties", {})
    plain.setdefault("required", [])
    return plain


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "properties":
            found[name] = {inner: _plain(one) for inner, one in cast("dict[str, dict[str, Any]]", value).items()}
        elif isinstance(value, dict):
            found[name] = _plain(cast("dict[str, Any]", value))
        elif name not in _LEFT_OUT:
            found[name] = value
    return found
