"""Contexts: the JSON values that a run carries from node to node.

A value is JSON as Python's `json` reads and writes it, NUL characters and lone surrogates included, with
three bounds: no NaN and no infinities, at most `MAX_DEPTH` levels, integers of at most `MAX_DIGITS` digits.

Depth counts containers: a number has depth 0, a list of numbers 1, a list in a dict 2. The context itself,
being the dict that holds the values, is not counted: each of its values may have `MAX_DEPTH` levels.

Between the parts of NOVA a context travels as *fragments*: key → the value's ASCII JSON text, so that code
which only passes a value on never parses it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from flows.graphs.errors import InvalidValueError

MAX_DEPTH: Final = 100
"""Levels of lists and dicts that a value may have."""
MAX_DIGITS: Final = 1000
"""Decimal digits that an integer may have."""

KEY_COST: Final = 100
"""Bytes that a key of a context costs beside its name and value: its places in dicts, messages and rows."""

_T = TypeVar("_T")
_HIGH: Final = 10**MAX_DIGITS
_LOW: Final = -_HIGH
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_HARMLESS: Final = frozenset((str, bool, type(None)))
_SHOWN_KEY: Final = 40
_SHOWN_STEPS: Final = 12


class _LongInteger:
    """Stands for an integer that was too long to be read."""


class _RefusedError(Exception):
    """What is wrong with a value ("": it is too deep); collects the way to it while the stack unwinds."""

    def __init__(self, problem: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.steps: list[str | int] = []


def check_value(value: object, path: str = "", max_depth: int = MAX_DEPTH, envelope: int = 0) -> None:
    """Make sure that `value` is JSON within NOVA's bounds.

    `path` is how the value itself is called, the key of a context for instance; `envelope` is the number of
    levels around what `max_depth` bounds. Raises InvalidValueError whose message and `path` name the first
    offender: `invoice.lines[3].total`.
    """
    try:
        _check(value, max_depth + envelope)
    except _RefusedError as refused:
        where = _join_path(path, reversed_steps=refused.steps)
        problem = refused.problem or f"lies deeper than {max_depth} levels."
        raise InvalidValueError(f"{where or 'The value'} {problem}", where) from None


def loads(data: bytes | str, path: str = "", max_depth: int = MAX_DEPTH, envelope: int = 0) -> Any:
    """Read JSON: as Python's `json` does (of equal keys the last counts), within the bounds of `check_value`.

    `envelope` is the number of levels around a value that is wrapped in something. Raises InvalidValueError
    for whatever cannot be read, never another exception.
    """
    suspects: list[object] = []

    def suspect(thing: object) -> object:
        suspects.append(thing)
        return thing

    def integer(text: str) -> object:
        # Python itself refuses more than 4300 digits, with a plain ValueError.
        short = len(text) <= MAX_DIGITS or len(text.removeprefix("-")) <= MAX_DIGITS
        return int(text) if short else suspect(_LongInteger())

    def real(text: str) -> object:
        number = float(text)
        return number if math.isfinite(number) else suspect(number)  # 1e999 is JSON, and infinite

    def constant(text: str) -> object:
        return suspect(float(text))

    name = path or "The value"
    try:
        value = json.loads(data, parse_int=integer, parse_float=real, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise InvalidValueError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.", path
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{name} is not UTF-8 text: byte {error.start} is wrong.", path) from None
    except RecursionError:
        raise InvalidValueError(f"{name} is nested deeper than {max_depth} levels.", path) from None
    if suspects or _is_deep(value, max_depth + envelope):
        # Rare, so only now is the price of finding out where paid. A suspect under a key that stands
        # twice may be gone, in which case nothing is wrong.
        check_value(value, path, max_depth, envelope)
    return value


def dumps(value: object) -> bytes:
    """Write JSON, compact and in ASCII, the one form in which values are stored, hashed and sent.

    Checks no bound but what cannot be written: NaN, infinities, types that JSON lacks, cycles. Those raise
    InvalidValueError that names the path.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        check_value(value)
        raise InvalidValueError(f"The value cannot be written as JSON: {error}") from None


def to_fragments(context: Mapping[str, Any]) -> dict[str, bytes]:
    """Write each value of a context as JSON text.

    Raises InvalidValueError that names the key, and the way below it, of a value that is out of bounds.
    """
    fragments: dict[str, bytes] = {}
    for key, value in context.items():
        if not isinstance(key, str):
            raise InvalidValueError(f"A key of the context is {_a(key)}, but keys are strings.")
        check_value(value, _join_path("", [key]))
        fragments[key] = dumps(value)
    return fragments


def from_fragments(fragments: Mapping[str, bytes]) -> dict[str, Any]:
    """Read each value of a context; raises InvalidValueError that names the key."""
    return {key: loads(data, _join_path("", [key])) for key, data in fragments.items()}


def join_fragments(fragments: Mapping[str, bytes]) -> bytes:
    """Join fragments to the text of one JSON object without parsing any of them."""
    return b"{" + b",".join(dumps(key) + b":" + data for key, data in fragments.items()) + b"}"


def size_of(name: str, text: bytes) -> int:
    """Count the bytes of one key of a context, given its value as JSON text.

    The runner counts the same (`flows.sandbox.runner.values`), but imports nothing from here.
    """
    return KEY_COST + len(dumps(name)) + len(text)


def merge(context: Mapping[str, _T], changes: Mapping[str, _T]) -> dict[str, _T]:
    """Lay changes over a context; nothing is taken away, so a key that a node deleted stays as it was."""
    return {**context, **changes}


def _check(value: object, levels: int) -> None:
    """Raise _RefusedError at the first fault; recursion is bounded by `levels`, cycles included.

    Strings and small integers get no call of their own: a context may hold millions of them.
    """
    if isinstance(value, dict):
        if levels < 1:
            raise _RefusedError
        for key, item in value.items():
            if not isinstance(key, str):
                raise _RefusedError(f"has a key that is {_a(key)}; keys are strings.")
            kind = type(item)
            if kind not in _HARMLESS and not (kind is int and _LOW < item < _HIGH):
                _check_below(item, levels - 1, key)
    elif isinstance(value, (list, tuple)):
        if levels < 1:
            raise _RefusedError
        for index, item in enumerate(value):
            kind = type(item)
            if kind not in _HARMLESS and not (kind is int and _LOW < item < _HIGH):
                _check_below(item, levels - 1, index)
    else:
        _check_scalar(value)


def _check_below(value: object, levels: int, step: str | int) -> None:
    try:
        _check(value, levels)
    except _RefusedError as refused:
        refused.steps.append(step)
        raise


def _check_scalar(value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _RefusedError("is NaN or infinite, which JSON lacks.")
    elif isinstance(value, _LongInteger) or (isinstance(value, int) and not _LOW < value < _HIGH):
        raise _RefusedError(f"is an integer of more than {MAX_DIGITS} digits.")
    elif value is not None and not isinstance(value, (int, str)):
        raise _RefusedError(f"is {_a(value)}, which JSON lacks.")


def _is_deep(value: object, max_depth: int) -> bool:
    """Whether a value has more levels than allowed: level by level, without a look at any string."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        if not level:
            return False
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
    return bool(level)


def _join_path(path: str, reversed_steps: list[str | int] | list[str]) -> str:
    parts = [path] if path else []
    for step in reversed(reversed_steps):
        if len(parts) > _SHOWN_STEPS:
            parts.append("…")
            break
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_KEY.fullmatch(step):
            parts.append(f".{step}" if parts else step)
        else:  # quoted and in ASCII, cut short: keys are as long and as odd as they like
            shown = step if len(step) <= _SHOWN_KEY else step[:_SHOWN_KEY] + "…"
            parts.append(f"[{json.dumps(shown)}]")
    return "".join(parts)


def _a(value: object) -> str:
    return f"of type {type(value).__name__}"
