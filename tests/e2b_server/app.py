"""The server as an ASGI application: E2B's control plane and its daemon behind one address."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.e2b_server import builds, commands, control, files, watching
from tests.e2b_server.builds import Builds
from tests.e2b_server.places import Places, SandboxSession
from tests.e2b_server.wire import RpcError

Handler = Callable[[Request], Awaitable[Response]]


def application(places: Places, made: Builds, api_key: str | None = None) -> Starlette:
    """Build the application; with `api_key`, any other key is refused."""

    def keyed(handle: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            given = request.headers.get("x-api-key")
            if not given or (api_key is not None and given != api_key):
                await request.body()
                return control.answer(401, "Invalid API key")
            return await handle(request)

        return checked

    def planned(handle: Callable[[Places, Request], Awaitable[Response]]) -> Handler:
        return keyed(partial(handle, places))

    def built(handle: Callable[[Builds, Request], Awaitable[Response]]) -> Handler:
        return keyed(partial(handle, made))

    def placed(
        handle: Callable[[SandboxSession, Request], Awaitable[Response]], *, signed: bool = False
    ) -> Handler:
        async def found(request: Request) -> Response:
            name = request.headers.get("e2b-sandbox-id", "")
            running = [p for p in places.all if p.state == "running"]
            if (
                signed and not name
            ):  # an address that was signed names no sandbox: the only one, or the newest
                name = running[-1].id if running else ""
            place = next((p for p in running if p.id == name), None)
            if place is None:
                await request.body()
                text = {"sandboxId": name, "message": "The sandbox was not found", "code": 502}
                return JSONResponse(text, 502)
            if not signed and request.headers.get("x-access-token") != place.token:
                await request.body()
                return JSONResponse({"code": "unauthenticated", "message": "unauthorized access"}, 401)
            return await handle(place, request)

        return found

    async def processes(place: SandboxSession, request: Request) -> Response:
        if request.path_params["method"] == "Start" and (status := next(places.starts_refused_with, 0)):
            await request.body()
            return PlainTextResponse("says the proxy", status)
        return await process_call(place, request)

    async def sandboxes(request: Request) -> Response:
        return JSONResponse([control.summary(place) for place in places.all])

    one = "/sandboxes/{id}"
    build = "/templates/{template}/builds/{build}"
    return Starlette(
        routes=[
            Route("/v2/sandboxes", planned(control.create), methods=["POST"]),
            Route("/v2/sandboxes", planned(control.list_), methods=["GET"]),
            Route(one, planned(control.one), methods=["GET", "DELETE"]),
            Route(f"{one}/timeout", planned(control.timeout), methods=["POST"]),
            Route(f"{one}/pause", planned(control.pause), methods=["POST"]),
            Route(f"{one}/metrics", planned(control.metrics), methods=["GET"]),
            Route(f"{one}/connect", planned(control.connect), methods=["POST"]),
            Route(f"/v2{one}/connect", planned(control.connect), methods=["POST"]),
            Route("/v3/templates", built(builds.ask), methods=["POST"]),
            Route("/templates/{template}/files/{hash}", built(builds.files), methods=["GET"]),
            Route("/uploads/{hash}", partial(builds.upload, made), methods=["PUT"]),
            Route(f"/v2{build}", built(builds.start), methods=["POST"]),
            Route(f"{build}/status", built(builds.status), methods=["GET"]),
            Route("/templates/aliases/{alias}", built(builds.alias), methods=["GET"]),
            Route("/health", placed(healthy, signed=True), methods=["GET"]),
            Route("/files", placed(files.download, signed=True), methods=["GET"]),
            Route("/files", placed(files.upload, signed=True), methods=["POST"]),
            Route("/process.Process/{method}", placed(processes), methods=["POST"]),
            Route("/filesystem.Filesystem/{method}", placed(file_call), methods=["POST"]),
            Route("/made-here", sandboxes, methods=["GET"]),
        ]
    )


async def healthy(place: SandboxSession, request: Request) -> Response:
    """Say that the sandbox is there."""
    return Response(status_code=204)


async def process_call(place: SandboxSession, request: Request) -> Response:
    """Answer a call of `process.Process`."""
    handle = commands.METHODS.get(request.path_params["method"])
    try:
        if handle is None:
            raise RpcError("unimplemented", "no such method here")
        return await handle(place, request, user_of(request))
    except RpcError as error:
        return error.response()


async def file_call(place: SandboxSession, request: Request) -> Response:
    """Answer a call of `filesystem.Filesystem`."""
    if request.path_params["method"] == "WatchDir":
        return await watching.watch_dir(place, request)
    body = await request.body()
    handle = {**files.METHODS, **watching.METHODS}.get(request.path_params["method"])
    try:
        if handle is None:
            raise RpcError("unimplemented", "no such method here")
        return JSONResponse(handle(place, await request.json() if body else {}))
    except RpcError as error:
        return error.response()


def user_of(request: Request) -> str:
    """Read the account that a call is made for: the name of its basic authentication."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return base64.b64decode(given).decode("utf-8").partition(":")[0] if kind == "Basic" else "user"
