"""The one response class: NOVA's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse

from flows.graphs.json_values import dumps

JSON = "application/json"


class JsonResponse(JSONResponse):
    """An answer as ASCII-escaped JSON without NaN; NUL and lone surrogates stay as they are.

    `content` is JSON data, or JSON text as bytes.
    """

    def __init__(
        self, content: Any = None, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        """Return the body as bytes."""
        return content if isinstance(content, bytes) else dumps(content)


def timestamp(moment: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC with a `Z`; None stays None."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None
