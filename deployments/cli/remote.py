"""The client of NOVA's API for the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.graphs.errors import InvalidInputError, NotFoundError, NovaError

ApiUrl = Annotated[
    str | None,
    typer.Option("--api-url", help="Address of the API. Default: NOVA_API_URL, else http://127.0.0.1:8000."),
]


class ApiError(NovaError):
    """The API cannot be reached, or answered with an error."""


class Api:
    """Calls of NOVA's API that return its JSON; use it as a context manager.

    Every call raises InvalidInputError (422, each fault on a line of its own), NotFoundError (404) or
    ApiError.
    """

    def __init__(self, url: str | None = None, timeout: float = 60.0) -> None:
        import httpx

        from flows.config.settings import get_settings

        self.url = (url or get_settings().api_url).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInputError(f"The API's address must begin with http:// or https://: {self.url}")
        self._client = httpx.Client(base_url=self.url, timeout=timeout)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET; parameters that are None are left out."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any) -> Any:
        """POST a JSON body."""
        return self._call("POST", path, body=body)

    def put(self, path: str, body: Any) -> Any:
        """PUT a JSON body."""
        return self._call("PUT", path, body=body)

    def delete(self, path: str) -> Any:
        """DELETE."""
        return self._call("DELETE", path)

    def pages(self, path: str, key: str, **params: Any) -> list[dict[str, Any]]:
        """Return all items of a list, read page by page."""
        found: list[dict[str, Any]] = []
        while True:
            answer = self.get(path, skip=len(found), limit=100, **params)
            found += answer[key]
            if not answer[key] or len(found) >= answer["total"]:
                return found

    def _call(self, method: str, path: str, *, params: dict[str, Any] | None = None, body: Any = None) -> Any:
        import json

        import httpx

        # Written by hand: httpx would refuse lone surrogates, which Python's JSON carries escaped.
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            response = self._client.request(method, path, params=params, content=content, headers=headers)
        except httpx.TimeoutException:
            raise ApiError(f"The API at {self.url} did not answer in time. Try again.") from None
        except httpx.TransportError as error:
            raise ApiError(
                f"The API at {self.url} cannot be reached ({error}). Start it with `nova up` or `nova api`, "
                "or give its address with --api-url."
            ) from None
        try:
            answer = json.loads(response.content) if response.content else {}
        except ValueError:
            raise ApiError(
                f"{self.url} answered {response.status_code} and no JSON: is it NOVA's API?"
            ) from None
        if response.is_success:
            return answer
        raise _error(response.status_code, answer)


def _error(status: int, answer: Any) -> NovaError:
    sentence = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    sentence = sentence or f"The API answered {status}."
    if status == 404:
        return NotFoundError(sentence)
    if status == 422:
        faults = [fault for fault in answer.get("errors") or [] if isinstance(fault, dict)]
        head, _, told = sentence.partition(": ")
        if faults and str(faults[0].get("message")) in told:
            sentence = "\n".join([f"{head}:", *(f"  {describe_fault(fault)}" for fault in faults)])
        return InvalidInputError(sentence)
    return ApiError(sentence)


def describe_fault(fault: dict[str, Any]) -> str:
    """Return a fault of a graph or a field as one line: where it is, then what it is."""
    where = [
        f"{word} {fault[name]}"
        for word, name in (("node", "node"), ("edge", "edge"), ("line", "line"), ("column", "column"))
        if fault.get(name) is not None
    ]
    if fault.get("field"):
        where.insert(0, str(fault["field"]))
    return (", ".join(where) + ": " if where else "") + str(fault.get("message", ""))
