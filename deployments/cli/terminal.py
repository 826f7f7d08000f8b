"""How the command line speaks: results on stdout, the rest on stderr, one sentence for an error."""

from __future__ import annotations

import sys
import threading
from typing import NoReturn

_lock = threading.Lock()


def say(line: str) -> None:
    """Print one line at once; parts that speak at the same time do not get into each other's lines."""
    with _lock:
        print(line, flush=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with an error message; surrogates and the like are shown escaped."""
    text = f"nova: {message}\n"
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))
    raise SystemExit(code)
