"""Output of the command line: results on stdout, the rest on stderr, one sentence for an error."""

from __future__ import annotations

import sys
import threading
from typing import NoReturn

_lock = threading.Lock()


def say(line: str) -> None:
    """Print one whole line; lines of parts that print at the same time do not mix."""
    with _lock:
        print(line, flush=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with an error message; characters that cannot be encoded are escaped."""
    text = f"nova: {message}\n"
    encoding = sys.stderr.encoding or "utf-8"
    sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))
    raise SystemExit(code)
