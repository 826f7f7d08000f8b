"""One sandbox in E2B's cloud: the runner in it, what it is told, and its end.

The runner is one file, in the template or uploaded, and is started as root; nodes run as E2B's account
`user`, so that they can neither end nor impersonate it. What the worker says goes through the runner's stdin,
what the runner answers comes over the command's output stream.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
from collections.abc import Callable

import e2b
from e2b.sandbox.commands.command_handle import CommandExitException
from e2b.sandbox_async.commands.command_handle import AsyncCommandHandle

from flows.config import times
from flows.graphs.errors import SandboxError
from flows.sandbox.channel import Channel, seen
from flows.sandbox.e2b.sdk_errors import reason_of, sandbox_error
from flows.sandbox.port import NodeCall, NodeResult
from flows.sandbox.protocol import (
    BOOT,
    Chunks,
    Message,
    mark_message,
    run_message,
    runner_zip,
)

log = logging.getLogger(__name__)

CHUNK = 2 * 1024 * 1024
"""Bytes of stdin sent with one request."""
PAUSES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try after a broken connection; then the sandbox is given up."""
REQUEST = times.SANDBOX_REQUEST
"""Seconds that one request may take."""
NO_RUNNER = 86
"""Exit status of a runner's command where the runner is not: none that Python or a shell has itself."""
GONE = (e2b.SandboxNotRunningException, e2b.NotFoundException)


async def kill(sandbox_id: str, api_key: str | None) -> None:
    """End a sandbox, again where the network broke the call, which the SDK does not repeat."""
    for pause in (*PAUSES, None):
        try:
            await e2b.AsyncSandbox.kill(sandbox_id, api_key=api_key, request_timeout=REQUEST)
            return
        except Exception as error:
            if pause is None or isinstance(error, e2b.AuthenticationException):
                raise sandbox_error(error, f"E2B sandbox {sandbox_id} could not be ended") from error
            await asyncio.sleep(pause)


class NoRunnerError(SandboxError):
    """The runner is not where the template should have it."""


class E2BSandbox(Channel):
    """One E2B sandbox with the runner in it; `ended` is called once, when it was killed."""

    def __init__(
        self, place: e2b.AsyncSandbox, api_key: str | None, grace: float, ended: Callable[[], None]
    ) -> None:
        super().__init__(grace)
        self._api_key = api_key
        self._place = place
        self._ended = ended
        self._chunks = Chunks(CHUNK)
        self._calls: dict[str, NodeCall] = {}
        self._complaints = ""
        self._pid = 0
        self._listener: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """E2B's id of the sandbox."""
        return self._place.sandbox_id

    async def upload_runner(self) -> str:
        """Bring the runner into the sandbox and return its path there; raises SandboxError."""
        try:
            uploaded = await self._place.files.write(
                "nova-runner.zip", runner_zip(), user="root", use_octet_stream=True, request_timeout=REQUEST
            )
        except Exception as error:
            raise sandbox_error(error, f"The runner could not be put into E2B sandbox {self.id}") from error
        return uploaded.path

    async def start(self, runner: str, output_limit: int) -> None:
        """Start the runner that lies at a path in the sandbox; raises NoRunnerError, SandboxError."""
        launching = asyncio.create_task(self._launch(runner, output_limit))
        launching.add_done_callback(seen)
        try:
            # Cancelled in the middle the SDK leaves a task behind, with an exception that nobody sees.
            handle = await asyncio.shield(launching)
        except Exception as error:
            raise sandbox_error(error, f"The runner could not be started in E2B sandbox {self.id}") from error
        self._pid = handle.pid
        self._listener = asyncio.create_task(self._listen(handle))
        try:
            async with asyncio.timeout(REQUEST):
                await self._ready
        except TimeoutError:
            raise SandboxError(
                f"The runner in E2B sandbox {self.id} did not start in {REQUEST:g} s.", reason="timeout"
            ) from None

    async def _launch(self, runner: str, output_limit: int) -> AsyncCommandHandle[None]:
        program = ["python3", "-u", "-c", BOOT, runner]
        options = ["--user", "user", "--output-limit", str(output_limit)]
        return await self._place.commands.run(
            # exec: else a signal would reach only the shell
            f"[ -f {shlex.quote(runner)} ] || exit {NO_RUNNER}; exec {shlex.join([*program, *options])}",
            background=True,
            user="root",
            stdin=True,
            timeout=0,
            request_timeout=REQUEST,
            on_stdout=self._heard,
            on_stderr=self._complained,
            retain_output=False,
        )

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node and wait for its result; raises SandboxError, after which the sandbox is of no use."""
        self._calls[call.call_id] = call
        try:
            return await super().run(call)
        finally:
            self._calls.pop(call.call_id, None)

    async def kill(self) -> None:
        """End the sandbox and everything in it. Never raises; may be called twice."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self.broke("it was ended")
        if self._listener is not None:
            self._listener.cancel()
        try:
            await kill(self.id, self._api_key)
        except SandboxError as error:  # E2B ends it at its timeout
            log.warning("%s", error)
        finally:
            self._ended()

    def _heard(self, text: str) -> None:
        self.received(text.encode("utf-8", "replace"))

    def _complained(self, text: str) -> None:
        self._complaints = (self._complaints + text)[-2000:]

    async def _send(self, message: Message) -> None:
        for chunk in self._chunks.cut(message):
            await self._send_chunk(chunk)

    async def _send_chunk(self, chunk: bytes) -> None:
        """Send a chunk, again where it is in doubt whether it arrived: the runner takes it once."""
        for pause in (*PAUSES, None):
            if self._fault is not None:
                raise self._error()
            try:
                await self._place.commands.send_stdin(self._pid, chunk, request_timeout=REQUEST)
                return
            except Exception as error:
                if pause is None or isinstance(error, (*GONE, e2b.AuthenticationException)):
                    reason, why = reason_of(error)
                    self.broke(why, reason)
                    raise self._error() from error
                await asyncio.sleep(pause)

    async def _listen(self, handle: AsyncCommandHandle[None]) -> None:
        """Follow the runner's output until it ends; a stream that drops is taken up again."""
        while True:
            try:
                await handle.wait()
                ended = "status 0"
            except CommandExitException as error:
                if error.exit_code == NO_RUNNER and not self._ready.done():
                    self._ready.set_exception(
                        NoRunnerError(f"E2B sandbox {self.id} holds no runner.", reason="runner")
                    )
                ended = f"status {error.exit_code}"
            except Exception as error:  # noqa: BLE001  (the stream broke; the SDK has plain exceptions, too)
                again = await self._listen_again(error)
                if again is None:
                    return
                handle = again
                continue
            said = self._complaints.strip()
            self.broke(f"its runner ended with {ended}" + (f": {said}" if said else ""), "runner")
            return

    async def _listen_again(self, error: Exception) -> AsyncCommandHandle[None] | None:
        """Connect to the runner's output anew and ask again for what was waited for; None: it is gone."""
        for pause in PAUSES:
            if self._fault is not None or isinstance(error, (*GONE, e2b.AuthenticationException)):
                break
            await asyncio.sleep(pause)
            handle = None
            try:
                mark = secrets.token_hex(16)
                self._answers.lost(mark)
                handle = await self._place.commands.connect(
                    self._pid,
                    timeout=0,
                    request_timeout=REQUEST,
                    on_stdout=self._heard,
                    on_stderr=self._complained,
                    retain_output=False,
                )
                await self._say(mark_message(mark))
                for call in list(self._calls.values()):
                    await self._say(run_message(call))
                return handle
            except Exception as next_error:  # noqa: BLE001  (the next try may do)
                error = next_error
                if handle is not None:
                    await handle.disconnect()
        reason, why = reason_of(error)
        self.broke(why, reason)
        return None
