"""Holds every answer against the OpenAPI document."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
from fastapi import FastAPI
from jsonschema import Draft202012Validator


class Conformance:
    """Knows the documented operations; `check` fails for an answer that is not as documented."""

    def __init__(self, app: FastAPI) -> None:
        self.document = app.openapi()
        self._paths = {
            re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path) + "$"): operations
            for path, operations in self.document["paths"].items()
        }

    async def check(self, response: httpx.Response) -> None:
        """Fail unless status and body are those of the operation; unknown addresses may only be refused."""
        assert response.headers["X-Request-ID"]
        await response.aread()
        path, method = response.request.url.path, response.request.method.lower()
        operations: dict[str, Any] = next(
            (found for known, found in self._paths.items() if known.match(path)), {}
        )
        if method not in operations:
            return
        documented = operations[method]["responses"]
        status = str(response.status_code)
        assert status in documented, f"{method} {path} answered {status}: {response.text[:500]}"
        body = json.loads(response.content)
        if status == "503" and "error" not in body:
            status = "200"  # health answers with its own body
        schema = documented[status]["content"]["application/json"]["schema"]
        whole = {**schema, "components": self.document["components"]}
        faults = [error.message for error in Draft202012Validator(whole).iter_errors(body)]
        assert not faults, f"{method} {path} {status}: {faults}"
