"""E2B's control plane: making, listing, prolonging, pausing and ending sandboxes."""

from __future__ import annotations

import urllib.parse
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b_server.limits import LimitReachedError
from tests.e2b_server.places import Places, SandboxSession

DEFAULT_TIMEOUT = 300
"""Seconds that a sandbox is prolonged by where a connect does not say."""


def answer(status: int, message: str) -> Response:
    """Answer with an error as the control plane writes it."""
    return JSONResponse({"code": status, "message": message}, status)


def missing(sandbox_id: str) -> Response:
    """Answer for a sandbox that is not there."""
    return answer(404, f"Sandbox {sandbox_id} not found")


async def create(places: Places, request: Request) -> Response:
    """Make a sandbox."""
    body = await request.json()
    if places.refuse_with is not None:
        places.refused += 1
        refusal = answer(*places.refuse_with)
        refusal.headers["Should-Retry"] = "false"
        return refusal
    try:
        place = await places.create(body, request.headers.get("idempotency-key"))
    except LimitReachedError as reached:
        return answer(429, str(reached))
    return JSONResponse(place.describe(), 201)


async def list_(places: Places, request: Request) -> Response:
    """List sandboxes by metadata, state, start and template, page by page."""
    query = request.query_params
    metadata = decoded(query.get("metadata", ""))
    states = query.get("state", "running,paused").split(",")
    after = datetime.fromisoformat(query["startedAfter"]) if "startedAfter" in query else None
    found = [
        place
        for place in places.all
        if place.state in states
        and metadata.items() <= place.metadata.items()
        and query.get("template", place.template) == place.template
        and (after is None or place.started >= after)
    ]
    if query.get("order", "desc") == "desc":
        found.reverse()
    first, count = int(query.get("nextToken", 0)), int(query.get("limit", 100))
    headers = {"x-next-token": str(first + count)} if len(found) > first + count else {}
    return JSONResponse([place.describe() for place in found[first : first + count]], headers=headers)


def decoded(text: str) -> dict[str, str]:
    """Read a metadata filter: quoted keys and values in a query string in a query."""
    pairs = urllib.parse.parse_qsl(text)
    return {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in pairs}


async def one(places: Places, request: Request) -> Response:
    """Show or end one sandbox."""
    place = places.find(request.path_params["id"])
    if place is None:
        return missing(request.path_params["id"])
    if request.method == "DELETE":
        places.kill(place, "kill")
        return Response(status_code=204)
    return JSONResponse(place.describe())


async def connect(places: Places, request: Request) -> Response:
    """Wake a sandbox up if it is paused; its time is prolonged, never cut."""
    place = places.find(request.path_params["id"])
    if place is None:
        return missing(request.path_params["id"])
    seconds = float((await body_of(request)).get("timeout") or DEFAULT_TIMEOUT)
    woken = place.state == "paused"
    if woken:
        places.resume(place)
    if woken or (place.ends - datetime.now(place.ends.tzinfo)).total_seconds() < seconds:
        places.set_timeout(place, seconds)
    return JSONResponse(place.describe(), 201 if woken else 200)


async def timeout(places: Places, request: Request) -> Response:
    """Set when a sandbox ends, counted from now."""
    place = places.find(request.path_params["id"])
    if place is None:
        return missing(request.path_params["id"])
    places.set_timeout(place, float((await request.json())["timeout"]))
    return Response(status_code=204)


async def pause(places: Places, request: Request) -> Response:
    """Pause a sandbox."""
    place = places.find(request.path_params["id"])
    await body_of(request)
    if place is None:
        return missing(request.path_params["id"])
    if place.state == "paused":
        return answer(409, f"Sandbox {place.id} is already paused")
    places.pause(place)
    return Response(status_code=204)


async def metrics(places: Places, request: Request) -> Response:
    """Answer with no measurements."""
    place = places.find(request.path_params["id"])
    return JSONResponse([]) if place is not None else missing(request.path_params["id"])


async def body_of(request: Request) -> dict[str, Any]:
    """Read a JSON body that may be left out."""
    data = await request.body()
    return dict(await request.json()) if data else {}


def summary(place: SandboxSession) -> dict[str, Any]:
    """What a test asks about a sandbox from another process."""
    return {
        "id": place.id,
        "template": place.template,
        "metadata": place.metadata,
        "timeout": place.timeout,
        "state": place.state,
        "ended_by": place.ended_by,
        "ended": place.ended.isoformat() if place.ended else None,
    }
