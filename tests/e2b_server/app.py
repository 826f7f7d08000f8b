"""The server's ASGI application: E2B's control plane and its daemon behind one URL."""

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
from tests.e2b_server.cloud import Cloud
from tests.e2b_server.simulated_sandbox import SimulatedSandbox
from tests.e2b_server.wire import RpcError

Handler = Callable[[Request], Awaitable[Response]]


def application(cloud: Cloud, template_builds: Builds, api_key: str | None = None) -> Starlette:
    """Return the application; with `api_key` it refuses every other key."""

    def with_key(handle: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            given = request.headers.get("x-api-key")
            if not given or (api_key is not None and given != api_key):
                await request.body()
                return control.answer(401, "Invalid API key")
            return await handle(request)

        return checked

    def for_cloud(handle: Callable[[Cloud, Request], Awaitable[Response]]) -> Handler:
        return with_key(partial(handle, cloud))

    def for_builds(handle: Callable[[Builds, Request], Awaitable[Response]]) -> Handler:
        return with_key(partial(handle, template_builds))

    def for_sandbox(
        handle: Callable[[SimulatedSandbox, Request], Awaitable[Response]], *, signed: bool = False
    ) -> Handler:
        async def found(request: Request) -> Response:
            name = request.headers.get("e2b-sandbox-id", "")
            running = [p for p in cloud.all if p.state == "running"]
            if signed and not name:  # a signed URL names no sandbox: use the newest
                name = running[-1].id if running else ""
            sandbox = next((p for p in running if p.id == name), None)
            if sandbox is None:
                await request.body()
                text = {"sandboxId": name, "message": "The sandbox was not found", "code": 502}
                return JSONResponse(text, 502)
            if not signed and request.headers.get("x-access-token") != sandbox.token:
                await request.body()
                return JSONResponse({"code": "unauthenticated", "message": "unauthorized access"}, 401)
            return await handle(sandbox, request)

        return found

    async def processes(sandbox: SimulatedSandbox, request: Request) -> Response:
        if request.path_params["method"] == "Start" and (status := next(cloud.starts_refused_with, 0)):
            await request.body()
            return PlainTextResponse("refused by the proxy", status)
        return await process_call(sandbox, request)

    async def sandboxes(request: Request) -> Response:
        return JSONResponse([control.summary(sandbox) for sandbox in cloud.all])

    one = "/sandboxes/{id}"
    build = "/templates/{template}/builds/{build}"
    return Starlette(
        routes=[
            Route("/v2/sandboxes", for_cloud(control.create), methods=["POST"]),
            Route("/v2/sandboxes", for_cloud(control.list_), methods=["GET"]),
            Route(one, for_cloud(control.one), methods=["GET", "DELETE"]),
            Route(f"{one}/timeout", for_cloud(control.timeout), methods=["POST"]),
            Route(f"{one}/pause", for_cloud(control.pause), methods=["POST"]),
            Route(f"{one}/metrics", for_cloud(control.metrics), methods=["GET"]),
            Route(f"{one}/connect", for_cloud(control.connect), methods=["POST"]),
            Route(f"/v2{one}/connect", for_cloud(control.connect), methods=["POST"]),
            Route("/v3/templates", for_builds(builds.request_build), methods=["POST"]),
            Route("/templates/{template}/files/{hash}", for_builds(builds.files), methods=["GET"]),
            Route("/uploads/{hash}", partial(builds.upload, template_builds), methods=["PUT"]),
            Route(f"/v2{build}", for_builds(builds.start), methods=["POST"]),
            Route(f"{build}/status", for_builds(builds.status), methods=["GET"]),
            Route("/templates/aliases/{alias}", for_builds(builds.alias), methods=["GET"]),
            Route("/health", for_sandbox(healthy, signed=True), methods=["GET"]),
            Route("/files", for_sandbox(files.download, signed=True), methods=["GET"]),
            Route("/files", for_sandbox(files.upload, signed=True), methods=["POST"]),
            Route("/process.Process/{method}", for_sandbox(processes), methods=["POST"]),
            Route("/filesystem.Filesystem/{method}", for_sandbox(file_call), methods=["POST"]),
            Route("/made-here", sandboxes, methods=["GET"]),
        ]
    )


async def healthy(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Answer that the sandbox exists."""
    return Response(status_code=204)


async def process_call(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Answer a call of `process.Process`."""
    handle = commands.METHODS.get(request.path_params["method"])
    try:
        if handle is None:
            raise RpcError("unimplemented", "no such method here")
        return await handle(sandbox, request, user_of(request))
    except RpcError as error:
        return error.response()


async def file_call(sandbox: SimulatedSandbox, request: Request) -> Response:
    """Answer a call of `filesystem.Filesystem`."""
    if request.path_params["method"] == "WatchDir":
        return await watching.watch_dir(sandbox, request)
    body = await request.body()
    handle = {**files.METHODS, **watching.METHODS}.get(request.path_params["method"])
    try:
        if handle is None:
            raise RpcError("unimplemented", "no such method here")
        return JSONResponse(handle(sandbox, await request.json() if body else {}))
    except RpcError as error:
        return error.response()


def user_of(request: Request) -> str:
    """Return the account of a call: the user name of its basic authentication."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return base64.b64decode(given).decode("utf-8").partition(":")[0] if kind == "Basic" else "user"
