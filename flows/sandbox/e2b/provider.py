"""Create, find and end sandboxes in E2B's cloud, over E2B's own SDK."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Sequence
from uuid import UUID

import e2b

from flows.config import times
from flows.graphs.errors import SandboxError
from flows.sandbox.channel import GRACE
from flows.sandbox.e2b import e2b_sandbox
from flows.sandbox.e2b.e2b_sandbox import E2BSandbox, NoRunnerError
from flows.sandbox.e2b.sdk_errors import sandbox_error
from flows.sandbox.e2b.throttle import CreationThrottle
from flows.sandbox.port import FoundSandbox, Sandbox, SandboxSpec
from flows.sandbox.protocol import installed_runner

log = logging.getLogger(__name__)

MARGIN = 60
"""Seconds after the run's limit at which E2B ends the sandbox by itself."""
CREATION_TIMEOUT = times.SANDBOX_CREATION
"""Seconds that the request may take that creates and starts a sandbox."""
UNANSWERED = frozenset({"unreachable", "timeout"})
"""Reasons of a SandboxError after which E2B may or may not have created a sandbox."""


class E2BProvider:
    """Creates sandboxes from an E2B template; `""` is E2B's base template.

    Without `api_key` the SDK uses `E2B_API_KEY`; `grace` is in seconds (see Channel). `installation` labels
    the sandboxes, so that several installations of NOVA can share a key.
    """

    def __init__(
        self,
        template: str = "",
        api_key: str | None = None,
        throttle: CreationThrottle | None = None,
        *,
        installation: str = "",
        grace: float = GRACE,
    ) -> None:
        self._label = {"installation": installation} if installation else {}
        self._template = template or None
        self._api_key = api_key
        self._throttle = throttle or CreationThrottle()
        self._grace = grace
        self._disposals: set[asyncio.Task[None]] = set()
        self._keys: dict[UUID, tuple[str, float]] = {}
        """Per flow run whose creation got no answer: its idempotency key, and when that sandbox has ended."""
        self._installed = bool(template)
        """Whether the template contains this worker's runner; True until a sandbox shows that it does not."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Wait for the throttle, create a sandbox and start the runner in it.

        Raises SandboxError, and then leaves no sandbox behind, with one exception: when E2B's answer is
        lost, so is the sandbox's id. The run's next creation in this process gets that sandbox.
        """
        key = self._take_key(spec)
        try:
            remote = await self._throttle.make(lambda: self._request(spec, key), self._dispose)
        except SandboxError as error:
            if error.reason in UNANSWERED:
                self._keys[spec.flow_run] = key, asyncio.get_running_loop().time() + _lifetime(spec)
            raise
        sandbox = self._wrap(remote)
        try:
            if self._installed:
                try:
                    await sandbox.start(installed_runner(), spec.output_limit)
                    return sandbox
                except NoRunnerError:
                    self._note_missing_runner()
                    sandbox = self._wrap(remote)
            await sandbox.start(await sandbox.upload_runner(), spec.output_limit)
        except BaseException:
            await sandbox.kill()
            raise
        return sandbox

    def _take_key(self, spec: SandboxSpec) -> str:
        """Return the idempotency key for a creation: the kept one of an unanswered creation, else a new one.

        A key that was answered is not used again: E2B might repeat a refusal. The kept key is removed here,
        since the same run may begin another creation before this one has ended.
        """
        now = asyncio.get_running_loop().time()
        self._keys = {run: kept for run, kept in self._keys.items() if kept[1] > now}
        key, _ = self._keys.pop(spec.flow_run, ("", now))
        return key or f"nova-{spec.flow_run}-{secrets.token_hex(8)}"

    def _wrap(self, remote: e2b.AsyncSandbox) -> E2BSandbox:
        return E2BSandbox(remote, self._api_key, self._grace, on_end=self._throttle.release)

    def _note_missing_runner(self) -> None:
        if self._installed:
            log.warning(
                "E2B template %s does not contain this version's runner, so it is uploaded to each sandbox. "
                "To save that, rebuild the template: nova template build",
                self._template,
            )
        self._installed = False

    async def _request(self, spec: SandboxSpec, key: str) -> e2b.AsyncSandbox:
        """Ask E2B once for a sandbox; raises SandboxError."""
        making = asyncio.create_task(
            e2b.AsyncSandbox.create(
                template=self._template,
                timeout=_lifetime(spec),
                metadata=spec.metadata | self._label,
                idempotency_key=key,
                api_key=self._api_key,
                request_timeout=CREATION_TIMEOUT,
                retries=0,  # the SDK's retries would bypass the throttle
            )
        )
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await self._dispose(making)
            raise
        except Exception as error:
            raise sandbox_error(error, "No E2B sandbox could be created") from error

    async def _dispose(self, making: asyncio.Future[e2b.AsyncSandbox]) -> None:
        """Wait for a creation that is no longer needed and end its sandbox.

        The wait is needed: only E2B's answer has the sandbox's id. Cancelling this does not stop it.
        """

        async def end_when_created() -> None:
            await asyncio.wait({making})
            if not making.cancelled() and making.exception() is None:
                with contextlib.suppress(SandboxError):  # the cleanup flow finds it
                    await e2b_sandbox.kill(making.result().sandbox_id, self._api_key)

        disposal = asyncio.create_task(end_when_created())
        self._disposals.add(disposal)
        disposal.add_done_callback(self._disposals.discard)
        await asyncio.shield(disposal)

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox by its id; does nothing if it has ended already; raises SandboxError."""
        await e2b_sandbox.kill(sandbox_id, self._api_key)

    async def list(self) -> Sequence[FoundSandbox]:
        """Return the sandboxes that E2B has for this installation's runs; raises SandboxError."""
        ours = e2b.SandboxQuery(metadata={"nova": "run", **self._label})
        found: list[e2b.SandboxInfo] = []
        try:
            pages = e2b.AsyncSandbox.list(
                ours, api_key=self._api_key, request_timeout=e2b_sandbox.REQUEST_TIMEOUT
            )
            while pages.has_next:
                found += await pages.next_items()
        except Exception as error:
            raise sandbox_error(error, "E2B's sandboxes could not be listed") from error
        return [
            FoundSandbox(one.sandbox_id, _uuid(one.metadata.get("flow_run")), one.started_at) for one in found
        ]


def _lifetime(spec: SandboxSpec) -> int:
    """Return the seconds after which E2B ends a run's sandbox by itself."""
    return math.ceil(spec.timeout) + MARGIN


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None
