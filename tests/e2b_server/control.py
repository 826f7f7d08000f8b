"""E2B's control plane: create, list, prolong, pause and end sandboxes."""

from __future__ import annotations

import urllib.parse
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b_server.cloud import Cloud
from tests.e2b_server.limits import LimitReachedError
from tests.e2b_server.simulated_sandbox import SimulatedSandbox

DEFAULT_TIMEOUT = 300
"""Seconds that a sandbox lives after a connect without a timeout."""


def answer(status: int, message: str) -> Response:
    """Return an error in the control plane's format."""
    return JSONResponse({"code": status, "message": message}, status)


def missing(sandbox_id: str) -> Response:
    """Return the answer for an unknown sandbox."""
    return answer(404, f"Sandbox {sandbox_id} not found")


async def create(cloud: Cloud, request: Request) -> Response:
    """Create a sandbox."""
    body = await request.json()
    if cloud.refuse_with is not None:
        cloud.refused += 1
        refusal = answer(*cloud.refuse_with)
        refusal.headers["Should-Retry"] = "false"
        return refusal
    try:
        sandbox = await cloud.create(body, request.headers.get("idempotency-key"))
    except LimitReachedError as reached:
        return answer(429, str(reached))
    return JSONResponse(sandbox.describe(), 201)


async def list_(cloud: Cloud, request: Request) -> Response:
    """List sandboxes by metadata, state, start and template, page by page."""
    query = request.query_params
    metadata = decoded(query.get("metadata", ""))
    states = query.get("state", "running,paused").split(",")
    after = datetime.fromisoformat(query["startedAfter"]) if "startedAfter" in query else None
    found = [
        sandbox
        for sandbox in cloud.all
        if sandbox.state in states
        and metadata.items() <= sandbox.metadata.items()
        and query.get("template", sandbox.template) == sandbox.template
        and (after is None or sandbox.started >= after)
    ]
    if query.get("order", "desc") == "desc":
        found.reverse()
    first, count = int(query.get("nextToken", 0)), int(query.get("limit", 100))
    headers = {"x-next-token": str(first + count)} if len(found) > first + count else {}
    return JSONResponse([sandbox.describe() for sandbox in found[first : first + count]], headers=headers)


def decoded(text: str) -> dict[str, str]:
    """Return a metadata filter as a dict; the SDK quotes it twice."""
    pairs = urllib.parse.parse_qsl(text)
    return {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in pairs}


async def one(cloud: Cloud, request: Request) -> Response:
    """Show or end one sandbox."""
    sandbox = cloud.find(request.path_params["id"])
    if sandbox is None:
        return missing(request.path_params["id"])
    if request.method == "DELETE":
        cloud.kill(sandbox, "kill")
        return Response(status_code=204)
    return JSONResponse(sandbox.describe())


async def connect(cloud: Cloud, request: Request) -> Response:
    """Resume a sandbox if it is paused, and prolong its time; it is never shortened."""
    sandbox = cloud.find(request.path_params["id"])
    if sandbox is None:
        return missing(request.path_params["id"])
    seconds = float((await body_of(request)).get("timeout") or DEFAULT_TIMEOUT)
    resumed = sandbox.state == "paused"
    if resumed:
        cloud.resume(sandbox)
    if resumed or (sandbox.ends - datetime.now(sandbox.ends.tzinfo)).total_seconds() < seconds:
        cloud.set_timeout(sandbox, seconds)
    return JSONResponse(sandbox.describe(), 201 if resumed else 200)


async def timeout(cloud: Cloud, request: Request) -> Response:
    """Set the seconds from now after which a sandbox ends."""
    sandbox = cloud.find(request.path_params["id"])
    if sandbox is None:
        return missing(request.path_params["id"])
    cloud.set_timeout(sandbox, float((await request.json())["timeout"]))
    return Response(status_code=204)


async def pause(cloud: Cloud, request: Request) -> Response:
    """Pause a sandbox."""
    sandbox = cloud.find(request.path_params["id"])
    await body_of(request)
    if sandbox is None:
        return missing(request.path_params["id"])
    if sandbox.state == "paused":
        return answer(409, f"Sandbox {sandbox.id} is already paused")
    cloud.pause(sandbox)
    return Response(status_code=204)


async def metrics(cloud: Cloud, request: Request) -> Response:
    """Return no measurements."""
    sandbox = cloud.find(request.path_params["id"])
    return JSONResponse([]) if sandbox is not None else missing(request.path_params["id"])


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON body of a request; empty if there is none."""
    data = await request.body()
    return dict(await request.json()) if data else {}


def summary(sandbox: SimulatedSandbox) -> dict[str, Any]:
    """Return what tests in other processes read of a sandbox."""
    return {
        "id": sandbox.id,
        "template": sandbox.template,
        "metadata": sandbox.metadata,
        "timeout": sandbox.timeout,
        "state": sandbox.state,
        "ended_by": sandbox.ended_by,
        "ended": sandbox.ended.isoformat() if sandbox.ended else None,
    }
