"""Ids and labels: what they may hold, and how they are shown in a sentence."""

from __future__ import annotations

import json
import re
from typing import Final

MAX_NAME: Final = 255
"""Characters that an id or a label may have."""

_SHOWN: Final = 80
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def quoted(text: str) -> str:
    """Quote text for a sentence: escaped where it cannot be printed, and cut short."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return json.dumps(shown, ensure_ascii=not shown.isprintable())


def is_printable(text: str) -> bool:
    """Whether text holds neither control characters nor lone surrogates, which break logs and servers."""
    return _UNPRINTABLE.search(text) is None


def plain(text: str) -> str:
    """Make another program's message fit for a sentence: one line, printable, cut short."""
    line = one_line(text[: 4 * _SHOWN])[: 2 * _SHOWN].rstrip(".")
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def one_line(text: str) -> str:
    """Make text one line that can be shown and sent anywhere."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())
