"""E2B's template builds: request one, upload its files, start it, read its log.

No image is built. A template's commands are logged, not run; the files that it copies are in its sandboxes.
"""

from __future__ import annotations

import asyncio
import io
import re
import secrets
import tarfile
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.e2b_server.cloud import Cloud
from tests.e2b_server.control import answer
from tests.e2b_server.simulated_sandbox import HOME

NAME = re.compile(r"[a-z0-9_-]+")
PAGE = 100
"""Log lines that one answer has at most."""

Step = dict[str, Any]


class StepError(Exception):
    """A step of a build failed."""


@dataclass
class Build:
    """One build: the request, its status, its log."""

    template_id: str
    name: str
    cpus: int | None
    memory: int | None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "waiting"
    image: str = ""
    steps: list[Step] = field(default_factory=list)
    forced: bool = False
    log: list[dict[str, Any]] = field(default_factory=list)
    reason: dict[str, Any] | None = None

    @property
    def commands(self) -> list[str]:
        """The shell commands of its steps."""
        return [step["args"][0] for step in self.steps if step["type"] == "RUN"]

    def say(self, message: str, step: str, level: str = "info") -> None:
        """Add a line to the log."""
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self.log.append({"timestamp": now, "level": level, "message": message, "step": step})


class Builds:
    """Every build that was requested, and the settings that make builds wait, print much or fail."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.all: list[Build] = []
        self.uploads: dict[str, bytes] = {}
        """Hash → the uploaded archive."""
        self.reset()

    def reset(self) -> None:
        """Forget all builds and uploads, and reset the settings."""
        self.all.clear()
        self.uploads.clear()
        self.running: set[asyncio.Task[None]] = set()
        self.held = False
        """While it is set, started builds wait before their first step."""
        self.lines = 0
        """Log lines of each command."""
        self.fails = ""
        """The first step that contains this text fails."""

    def find(self, request: Request) -> Build | None:
        """Return the build that a request names; None if there is none."""
        path = request.path_params
        return next((b for b in self.all if (b.template_id, b.id) == (path["template"], path["build"])), None)

    def template_of(self, name: str) -> str | None:
        """Return the id of the template with this name; None if there is none."""
        return next((build.template_id for build in self.all if build.name == name), None)

    async def run(self, build: Build) -> None:
        """Execute a build's steps in order; set its status and reason."""
        build.status = "building"
        build.say(f"Building template {build.template_id}/{build.id}", "base")
        build.say(f"[base] FROM {build.image} [{secrets.token_hex(32)}]", "base")
        while self.held:  # noqa: ASYNC110  (set from another thread, by a test)
            await asyncio.sleep(0.01)
        installed: dict[str, bytes] = {}
        step = ""
        try:
            for number, todo in enumerate(build.steps, start=1):
                step = str(number)
                self.execute(build, todo, step, installed)
        except StepError as error:
            build.say(str(error), step, "error")
            build.reason = {"message": str(error), "step": step}
            build.status = "error"
            return
        build.say("Build finished, took 1s", "finalize")
        for name in (build.name, build.template_id):
            self.cloud.installed[name] = installed
        build.status = "ready"

    def execute(self, build: Build, todo: Step, step: str, installed: dict[str, bytes]) -> None:
        """Execute one step; raises StepError."""
        text = " ".join([todo["type"], *todo["args"]])
        build.say(f"[builder {step}/{len(build.steps)}] {text} [{secrets.token_hex(32)}]", step)
        if todo["type"] == "RUN":
            for line in range(self.lines):
                build.say(f"[builder {step}/{len(build.steps)}] [stdout]: line {line + 1}", step)
        if self.fails and self.fails in text:
            raise StepError(f"failed to run command '{todo['args'][0]}': command failed: exit status 1")
        if todo["type"] == "COPY":
            installed.update(copied(todo, self.uploads.get(todo["filesHash"], b"")))


def copied(step: Step, archive: bytes) -> dict[str, bytes]:
    """Return the files of a COPY step, path → content; raises StepError.

    A folder's content goes into the target. A file gets the target's name, unless that ends with a slash.
    """
    source, target = step["args"][:2]
    target = target if target.startswith("/") else f"{HOME}/{target}"
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            found = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
    except tarfile.TarError as error:
        raise StepError(f"failed to extract files: {error}") from None
    made = {}
    for name, data in found.items():
        path = PurePosixPath(name)
        if name == source:
            made[target + path.name if target.endswith("/") else target] = data
        elif path.is_relative_to(source):
            made[str(PurePosixPath(target) / path.relative_to(source))] = data
    if not made:
        raise StepError(f"source path does not exist: {source}")
    return made


async def request_build(builds: Builds, request: Request) -> Response:
    """Register a build of the template with this name, which may be new."""
    body = await request.json()
    name, _, tag = body.get("name", "").partition(":")
    if not NAME.fullmatch(name):
        return answer(400, f"Invalid name: invalid template ID: {name}")
    template_id = builds.template_of(name) or secrets.token_hex(10)
    build = Build(template_id, name, body.get("cpuCount"), body.get("memoryMB"))
    builds.all.append(build)
    described = {
        "templateID": template_id,
        "buildID": build.id,
        "public": False,
        "names": [f"team/{name}"],
        "aliases": [name],
        "tags": [*body.get("tags", ()), *([tag] if tag else [])] or ["default"],
    }
    return JSONResponse(described, 202)


async def files(builds: Builds, request: Request) -> Response:
    """Answer whether files were uploaded already, and the URL to upload them to."""
    digest = request.path_params["hash"]
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return answer(400, "Invalid files hash")
    url = f"{request.base_url}uploads/{digest}"
    return JSONResponse({"present": digest in builds.uploads, "url": url}, 201)


async def upload(builds: Builds, request: Request) -> Response:
    """Store an uploaded archive; the real URL is signed, so it needs no key."""
    builds.uploads[request.path_params["hash"]] = await request.body()
    return Response(status_code=200)


async def start(builds: Builds, request: Request) -> Response:
    """Start a build."""
    build, body = builds.find(request), await request.json()
    if build is None:
        return answer(404, "Error when getting template: no rows in result set")
    if build.status != "waiting":
        return answer(400, "build is not in waiting state")
    build.image = body.get("fromImage") or body.get("fromTemplate", "")
    build.steps, build.forced = body.get("steps", []), body.get("force", False)
    build.status = "building"
    task = asyncio.create_task(builds.run(build))
    builds.running.add(task)
    task.add_done_callback(builds.running.discard)
    return Response(status_code=202)


async def status(builds: Builds, request: Request) -> Response:
    """Return a build's status and a page of its log."""
    build = builds.find(request)
    if build is None:
        return answer(400, f"Build '{request.path_params['build']}' not found")
    first = int(request.query_params.get("logsOffset", 0))
    described = {
        "templateID": build.template_id,
        "buildID": build.id,
        "status": build.status,
        "logs": [],
        "logEntries": build.log[first : first + min(PAGE, int(request.query_params.get("limit", PAGE)))],
    }
    return JSONResponse({**described, "reason": build.reason} if build.reason else described)


async def alias(builds: Builds, request: Request) -> Response:
    """Return the template with this name."""
    name = request.path_params["alias"]
    found = builds.template_of(name)
    if found is None:
        return answer(404, f"template '{name}' not found")
    return JSONResponse({"templateID": found, "public": False})
