"""One sandbox in E2B's cloud: start the runner in it, send it messages, read its answers, end it.

The runner is one file, in the template or uploaded. It runs as root; nodes run as E2B's account `user`, so
that they can neither end nor impersonate the runner. Messages go through the runner's stdin, answers come
over the command's output stream.
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
from flows.sandbox.channel import Channel, retrieve_exception
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
"""Bytes of stdin that one request sends at most."""
RETRY_PAUSES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each retry after a broken connection. After the last one the sandbox counts as broken."""
REQUEST_TIMEOUT = times.SANDBOX_REQUEST
"""Seconds that one request may take."""
NO_RUNNER = 86
"""Exit status that means: the runner's file is missing. Neither Python nor the shell uses it."""
GONE = (e2b.SandboxNotRunningException, e2b.NotFoundException)
"""Exceptions of the SDK that mean: the sandbox or its runner no longer exists."""


async def kill(sandbox_id: str, api_key: str | None) -> None:
    """End a sandbox; retried after every error but a refused key. The SDK retries no `kill`.

    Raises SandboxError.
    """
    for pause in (*RETRY_PAUSES, None):
        try:
            await e2b.AsyncSandbox.kill(sandbox_id, api_key=api_key, request_timeout=REQUEST_TIMEOUT)
            return
        except Exception as error:
            if pause is None or isinstance(error, e2b.AuthenticationException):
                raise sandbox_error(error, f"E2B sandbox {sandbox_id} could not be ended") from error
            await asyncio.sleep(pause)


class NoRunnerError(SandboxError):
    """The template does not contain this version's runner."""


class E2BSandbox(Channel):
    """One E2B sandbox with the runner in it; `on_end` is called once, after the sandbox was ended."""

    def __init__(
        self, remote: e2b.AsyncSandbox, api_key: str | None, grace: float, on_end: Callable[[], None]
    ) -> None:
        super().__init__(grace)
        self._api_key = api_key
        self._remote = remote
        self._on_end = on_end
        self._chunks = Chunks(CHUNK)
        self._calls: dict[str, NodeCall] = {}
        self._stderr = ""
        self._pid = 0
        self._listener: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """E2B's id of the sandbox."""
        return self._remote.sandbox_id

    async def upload_runner(self) -> str:
        """Upload the runner and return its path in the sandbox; raises SandboxError."""
        try:
            uploaded = await self._remote.files.write(
                "nova-runner.zip",
                runner_zip(),
                user="root",
                use_octet_stream=True,
                request_timeout=REQUEST_TIMEOUT,
            )
        except Exception as error:
            raise sandbox_error(
                error, f"The runner could not be uploaded to E2B sandbox {self.id}"
            ) from error
        return uploaded.path

    async def start(self, runner: str, output_limit: int) -> None:
        """Start the runner from its path in the sandbox; raises NoRunnerError and SandboxError."""
        launching = asyncio.create_task(self._launch(runner, output_limit))
        launching.add_done_callback(retrieve_exception)
        try:
            # Shielded: cancelled in the middle, the SDK leaves a task whose exception is never retrieved.
            handle = await asyncio.shield(launching)
        except Exception as error:
            raise sandbox_error(error, f"The runner could not be started in E2B sandbox {self.id}") from error
        self._pid = handle.pid
        self._listener = asyncio.create_task(self._listen(handle))
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._ready
        except TimeoutError:
            raise SandboxError(
                f"The runner in E2B sandbox {self.id} did not start in {REQUEST_TIMEOUT:g} s.",
                reason="timeout",
            ) from None

    async def _launch(self, runner: str, output_limit: int) -> AsyncCommandHandle[None]:
        program = ["python3", "-u", "-c", BOOT, runner]
        options = ["--user", "user", "--output-limit", str(output_limit)]
        return await self._remote.commands.run(
            # exec: without it a signal reaches only the shell
            f"[ -f {shlex.quote(runner)} ] || exit {NO_RUNNER}; exec {shlex.join([*program, *options])}",
            background=True,
            user="root",
            stdin=True,
            timeout=0,
            request_timeout=REQUEST_TIMEOUT,
            on_stdout=self._on_stdout,
            on_stderr=self._on_stderr,
            retain_output=False,
        )

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node and return its result; raises SandboxError, and then the sandbox is unusable."""
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
        self.mark_broken("it was ended")
        if self._listener is not None:
            self._listener.cancel()
        try:
            await kill(self.id, self._api_key)
        except SandboxError as error:  # E2B ends the sandbox at its timeout
            log.warning("%s", error)
        finally:
            self._on_end()

    def _on_stdout(self, text: str) -> None:
        self.receive(text.encode("utf-8", "replace"))

    def _on_stderr(self, text: str) -> None:
        self._stderr = (self._stderr + text)[-2000:]

    async def _send(self, message: Message) -> None:
        for chunk in self._chunks.cut(message):
            await self._send_chunk(chunk)

    async def _send_chunk(self, chunk: bytes) -> None:
        """Send a chunk; send it again when it may not have arrived. The runner ignores repeated chunks."""
        for pause in (*RETRY_PAUSES, None):
            if self._fault is not None:
                raise self._error()
            try:
                await self._remote.commands.send_stdin(self._pid, chunk, request_timeout=REQUEST_TIMEOUT)
                return
            except Exception as error:
                if pause is None or isinstance(error, (*GONE, e2b.AuthenticationException)):
                    reason, why = reason_of(error)
                    self.mark_broken(why, reason)
                    raise self._error() from error
                await asyncio.sleep(pause)

    async def _listen(self, handle: AsyncCommandHandle[None]) -> None:
        """Read the runner's output until it ends; reconnect when the stream breaks."""
        while True:
            try:
                await handle.wait()
                ended = "status 0"
            except CommandExitException as error:
                if error.exit_code == NO_RUNNER and not self._ready.done():
                    self._ready.set_exception(
                        NoRunnerError(f"E2B sandbox {self.id} contains no runner.", reason="runner")
                    )
                ended = f"status {error.exit_code}"
            except Exception as error:  # noqa: BLE001  (the stream broke; the SDK raises plain exceptions, too)
                again = await self._listen_again(error)
                if again is None:
                    return
                handle = again
                continue
            said = self._stderr.strip()
            self.mark_broken(f"its runner ended with {ended}" + (f": {said}" if said else ""), "runner")
            return

    async def _listen_again(self, error: Exception) -> AsyncCommandHandle[None] | None:
        """Reconnect to the runner's output and ask for the open calls' results again.

        Returns None when the sandbox cannot be reached any more; it is then marked as broken.
        """
        for pause in RETRY_PAUSES:
            if self._fault is not None or isinstance(error, (*GONE, e2b.AuthenticationException)):
                break
            await asyncio.sleep(pause)
            handle = None
            try:
                mark = secrets.token_hex(16)
                self._answers.skip_to(mark)
                handle = await self._remote.commands.connect(
                    self._pid,
                    timeout=0,
                    request_timeout=REQUEST_TIMEOUT,
                    on_stdout=self._on_stdout,
                    on_stderr=self._on_stderr,
                    retain_output=False,
                )
                await self._send_whole(mark_message(mark))
                for call in list(self._calls.values()):
                    await self._send_whole(run_message(call))
                return handle
            except Exception as next_error:  # noqa: BLE001  (the next try may succeed)
                error = next_error
                if handle is not None:
                    await handle.disconnect()
        reason, why = reason_of(error)
        self.mark_broken(why, reason)
        return None
