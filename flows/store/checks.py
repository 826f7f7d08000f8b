"""Checks of what goes into a plain VARCHAR column: PostgreSQL takes neither NUL nor surrogates there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from flows.graphs.errors import InvalidInputError

PRIORITIES = ("high", "normal", "low")
OVERLAPS = ("queue", "skip")
KINDS = ("email", "database")

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def is_plain(text: str) -> bool:
    """Whether a text is free of control characters and surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def plain(field: str, text: str, limit: int) -> str:
    """The text, if it is 1 to `limit` plain characters, not all of them blank; else InvalidInputError."""
    if not text.strip():
        raise invalid(field, "must not be empty")
    if len(text) > limit:
        raise invalid(field, f"must not be longer than {limit} characters")
    if not is_plain(text):
        raise invalid(field, "must not contain control characters or surrogates")
    return text


def client_slug(text: str) -> str:
    """The text, if it can be the slug of a client; else InvalidInputError."""
    if not _SLUG.fullmatch(text):
        raise invalid(
            "slug",
            "must be 1 to 64 of a-z, 0-9, hyphen and underscore, the first a letter or a digit",
        )
    return text


def one_of(field: str, text: str, allowed: Collection[str]) -> str:
    """The text, if it is allowed; else InvalidInputError that lists what is."""
    if text not in allowed:
        raise invalid(field, f"must be one of {', '.join(allowed)}")
    return text


def invalid(field: str, message: str) -> InvalidInputError:
    """InvalidInputError about one field."""
    return InvalidInputError(f"{field} {message}.", [{"field": field, "message": message}])
