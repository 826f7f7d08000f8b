"""The E2B template of NOVA's sandboxes as code: Python, the packages that workflows use, the runner.

A template only saves time. If it contains another version's runner, or none, as E2B's base template, the
worker uploads its own. So templates and workers can be updated in any order.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import e2b

from flows.graphs.errors import NovaError
from flows.sandbox.e2b.sdk_errors import reason_of
from flows.sandbox.protocol import BOOT, installed_runner, runner_zip

PYTHON = "3.11"
"""The Python version of E2B's base template and of the tests, so that it is the same everywhere."""
PACKAGES = Path(__file__).parent / "packages.txt"
MODULES = ("fitz", "openpyxl", "pandas", "PIL", "psycopg2", "requests")
"""The modules that workflows import from PACKAGES; the build checks that they can be imported."""
POLL_INTERVAL = 0.5
"""Seconds between two requests for a build's state."""
FINISHED = (e2b.TemplateBuildStatus.READY, e2b.TemplateBuildStatus.ERROR)

OnLog = Callable[[e2b.LogEntry], None]


class TemplateError(NovaError):
    """A template could not be built; the message names the step and the cause."""


def template(folder: Path) -> e2b.TemplateClass:
    """Return the template's definition; the files that it copies are written into `folder`.

    The runner comes after the packages, which change less often: E2B rebuilds only from the first changed
    step on. The last two steps fail if a package cannot be imported or the runner does not start.
    """
    (folder / "packages.txt").write_bytes(PACKAGES.read_bytes())
    (folder / "runner.zip").write_bytes(runner_zip())
    runner = installed_runner()
    packages = str(PurePosixPath(runner).parent / "packages.txt")
    start = shlex.join(["python3", "-c", BOOT, runner, "--user", "user"])
    return (
        e2b.AsyncTemplate(file_context_path=folder)
        .from_python_image(PYTHON)
        .copy("packages.txt", packages, user="root", mode=0o644)
        .pip_install(["--only-binary=:all:", "--no-cache-dir", "--root-user-action=ignore", "-r", packages])
        .copy("runner.zip", runner, user="root", mode=0o644)
        .run_cmd(f"python3 -c 'import {', '.join(MODULES)}'")
        .run_cmd(f": | {start} | grep '\"ready\"'", user="root")  # the runner ends when its stdin does
    )


async def build(
    name: str,
    *,
    api_key: str | None = None,
    cpus: int = 2,
    memory: int = 1024,
    cache: bool = True,
    on_log: OnLog = lambda entry: None,
) -> None:
    """Build the template under a name and wait until it is ready; raises TemplateError.

    `memory` is in MiB; `on_log` gets each line of the build's log. Until the build is ready, sandboxes are
    created from the previous build. Cancelling the wait does not stop the build.
    """
    with tempfile.TemporaryDirectory(prefix="nova-template-") as folder:
        try:
            begun = await e2b.AsyncTemplate.build_in_background(
                template(Path(folder)),
                name,
                cpu_count=cpus,
                memory_mb=memory,
                skip_cache=not cache,
                on_build_logs=on_log,
                api_key=api_key,
            )
        except Exception as error:
            raise TemplateError(f"The template cannot be built: {reason_of(error)[1]}.") from error
    await _follow(begun, api_key, on_log)


async def _follow(begun: e2b.BuildInfo, api_key: str | None, on_log: OnLog) -> None:
    """Pass a build's log to `on_log` until the build ends; raises TemplateError if it fails."""
    seen = 0
    while True:
        try:
            state = await e2b.AsyncTemplate.get_build_status(begun, seen, api_key=api_key)
        except Exception as error:
            why = reason_of(error)[1]
            raise TemplateError(
                f"The build may go on, but its state cannot be read any more: {why}."
            ) from error
        for entry in state.log_entries:
            on_log(entry)
        seen += len(state.log_entries)
        if state.status not in FINISHED:
            await asyncio.sleep(POLL_INTERVAL)
        elif not state.log_entries:  # one answer has at most a hundred lines
            break
    if state.status is e2b.TemplateBuildStatus.ERROR:
        reason = state.reason or e2b.BuildStatusReason("E2B gave no reason")
        at = f" at step {reason.step}" if reason.step else ""
        raise TemplateError(f"The build failed{at}: {reason.message}")
