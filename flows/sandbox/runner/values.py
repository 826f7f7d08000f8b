"""Check that a node's context is JSON, and find the keys that the node changed."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Levels of lists and dicts that a value may have."""
MAX_DIGITS = 1000
"""Decimal digits that an integer may have."""
KEY_COST = 100
"""Bytes that a context key counts in addition to its name and value: its share of dicts, messages, rows."""
ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
SCALARS = (str, int, float, bool, type(None))
MISSING = object()
"""Stands for a value that does not exist; None is a value."""


class InvalidValue(Exception):  # noqa: N818
    """The node set a context value that is not JSON; the message names the key."""


# -- values ------------------------------------------------------------------------------------------


def fault_in(value: Any, path: str, above: tuple[int, ...] = ()) -> str | None:
    """Return why `value` is not JSON, with the path to the faulty part; None if it is."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        return (
            None if abs(value) < 10**MAX_DIGITS else f"{path} is an integer of more than {MAX_DIGITS} digits"
        )
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return f"{path} is {name}, which JSON does not have"
    if not isinstance(value, (list, tuple, dict)):
        return f"{path} is of type {type(value).__name__}, which JSON does not have"
    if id(value) in above:
        return f"{path} contains itself"
    if len(above) >= MAX_DEPTH:
        return f"{path.split(']')[0]}] is nested deeper than {MAX_DEPTH} levels"
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if not isinstance(key, SCALARS):
            return f"{path} has a key of type {type(key).__name__}, which JSON does not have"
        found = fault_in(item, f"{path}[{json.dumps(key)[:80]}]", (*above, id(value)))
        if found:
            return found
    return None


def deeper_than(value: Any, limit: int) -> bool:
    """Return whether lists and dicts in `value` are nested more than `limit` levels; fast on large values."""
    level = [value]
    for _ in range(limit + 1):
        level = [item for item in level if isinstance(item, (list, tuple, dict))]
        if not level:
            return False
        level = [i for item in level for i in (item.values() if isinstance(item, dict) else item)]
    return True


def has_long_number(text: str) -> bool:
    """Return whether JSON text may contain an integer of too many digits; texts of digits count, too.

    It looks for aligned blocks of digits alone: every such integer contains one. A regular expression would
    take a hundred times as long.
    """
    block = MAX_DIGITS // 2
    return any(text[at : at + block].isdigit() for at in range(0, len(text) - block, block))


def to_json(name: str, value: Any) -> bytes:
    """Return a context value as compact ASCII JSON; raises InvalidValue."""
    path = f"context[{json.dumps(name)[:80]}]"
    try:
        text = ENCODER.encode(value)
        deep = text.count("[") + text.count("{") > MAX_DEPTH and deeper_than(value, MAX_DEPTH)
        if isinstance(value, str) or not (deep or has_long_number(text)):
            return text.encode("ascii")
        cause = ""
    except (TypeError, ValueError, RecursionError) as error:
        text, cause = "", str(error)
    fault = fault_in(value, path)
    if fault or not text:
        raise InvalidValue(fault or f"{path} is not JSON: {cause}")
    return text.encode("ascii")


def size_of(name: str, text: bytes) -> int:
    """Return the bytes that a context key counts, given its value as JSON; many small keys add up."""
    return KEY_COST + len(ENCODER.encode(name)) + len(text)


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and the infinities, which `json.loads` would accept."""
    raise ValueError(f"{name} is not JSON")


def parse_json(text: bytes) -> Any:
    """Return a value from its JSON text; raises ValueError if it is not JSON."""
    return json.loads(text.decode("ascii"), parse_constant=refuse_constant)


def key_name(key: Any) -> str:
    """Return a context key as JSON writes it: numbers, booleans and None become text; raises InvalidValue."""
    if isinstance(key, str):
        return str(key)
    if isinstance(key, SCALARS):
        name: str = json.loads(ENCODER.encode({key: 0}).partition(":")[0][1:])
        return name
    raise InvalidValue(f"context has a key of type {type(key).__name__}, which JSON does not have")


def changes_of(context: Any, values: dict[str, Any], texts: dict[str, bytes]) -> dict[str, bytes]:
    """Return the keys that a node set or changed, also in place: name → JSON text; raises InvalidValue."""
    if not isinstance(context, dict):
        kind = type(context).__name__
        what = "was deleted" if context is MISSING else f"was replaced by a value of type {kind}"
        raise InvalidValue(f"context {what}; it must stay a dict")
    changes = {}
    for key, value in list(context.items()):
        if type(value) in SCALARS and value is values.get(key, MISSING):
            continue
        name = key_name(key)
        text = to_json(name, value)
        if texts.get(name) != text:
            changes[name] = text
    return changes
