"""JSON schemas (draft 2020-12) in few words, and the part of checking that they need."""

from __future__ import annotations

import math
import re
from typing import Any


def object(description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(description: str, items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": items}


def text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def choice(description: str, *allowed: Any) -> dict[str, Any]:
    return {"enum": list(allowed), "description": description}


def number(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "number", "description": description, **more}


def index(description: str, least: int = 0) -> dict[str, Any]:
    return {"type": "integer", "description": description, "minimum": least}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {"object": dict, "array": (list, tuple), "string": str, "number": (int, float), "integer": int}


def check(value: Any, schema: dict[str, Any], place: str, error: type[ValueError] = ValueError) -> None:
    """Raise `error`, which names the place, where `value` departs from a schema of this module's making."""
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if value is None and "null" in kinds:
        return
    if "enum" in schema:
        if value not in schema["enum"]:
            raise error(f"{place} must be one of {', '.join(map(repr, schema['enum']))}, got {value!r}")
        return
    kind = kinds[0]
    fits = isinstance(value, bool) if kind == "boolean" else isinstance(value, _TYPES[kind])
    if not fits or (isinstance(value, bool) and kind != "boolean"):
        raise error(f"{place} must be of type {' or '.join(kinds)}, got {value!r:.80}")
    if kind == "object":
        for problem, names in (
            ("lacks", schema["properties"].keys() - value.keys()),
            ("has the unknown", value.keys() - schema["properties"].keys()),
        ):
            if names:
                raise error(f"{place} {problem} {', '.join(sorted(map(str, names)))}")
        for name, inner in schema["properties"].items():
            check(value[name], inner, f"{place}.{name}", error)
    elif kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            raise error(f"{place} must have {schema['minItems']} entries, got {len(value)}")
        for i, item in enumerate(value):
            check(item, schema["items"], f"{place}[{i}]", error)
    elif kind in ("number", "integer"):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not (low <= value <= high and abs(value) < math.inf):
            raise error(f"{place} must be finite and in {low}..{high}, got {value}")
    elif kind == "string" and _SURROGATE.search(value):
        raise error(f"{place} holds half a character (a lone surrogate)")
    elif kind == "string" and not re.search(schema.get("pattern", ""), value):
        wanted = schema.get("$comment") or f"match {schema['pattern']}"
        raise error(f"{place} must {wanted}, got {value!r:.80}")
