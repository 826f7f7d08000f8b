"""Sandboxes in E2B's cloud, over E2B's own SDK: making them, each in its turn, and finding them again."""

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
"""Seconds that a sandbox outlives its run's limit: it ends itself if nobody else does."""
CREATION = times.SANDBOX_CREATION
"""Seconds that the request for a sandbox may take, which starts it."""
UNANSWERED = frozenset({"unreachable", "timeout"})
"""Reasons after which nobody knows whether a sandbox was made."""


class E2BProvider:
    """Makes sandboxes from an E2B template; `""` is E2B's base template.

    Without `api_key` the SDK takes `E2B_API_KEY`; `grace` is in seconds (see Channel). `installation` tells
    the sandboxes apart of several installations of NOVA that share a key.
    """

    def __init__(
        self,
        template: str = "",
        api_key: str | None = None,
        turns: CreationThrottle | None = None,
        *,
        installation: str = "",
        grace: float = GRACE,
    ) -> None:
        self._mark = {"installation": installation} if installation else {}
        self._template = template or None
        self._api_key = api_key
        self._turns = turns or CreationThrottle()
        self._grace = grace
        self._burials: set[asyncio.Task[None]] = set()
        self._keys: dict[UUID, tuple[str, float]] = {}
        """Of each run whose creation was not answered the key, and until when what that made can live."""
        self._installed = bool(template)
        """Whether the template is believed to hold this worker's runner."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox when it is its turn and start the runner in it.

        Raises SandboxError, and then leaves none behind but one whose name E2B's lost answer had: the run's
        next creation here gets that one.
        """
        key = self._take_key(spec)
        try:
            place = await self._turns.make(lambda: self._make(spec, key), self._bury)
        except SandboxError as error:
            if error.reason in UNANSWERED:
                self._keys[spec.flow_run] = key, asyncio.get_running_loop().time() + _lifetime(spec)
            raise
        sandbox = self._in(place)
        try:
            if self._installed:
                try:
                    await sandbox.start(installed_runner(), spec.output_limit)
                    return sandbox
                except NoRunnerError:
                    self._note_missing()
                    sandbox = self._in(place)
            await sandbox.start(await sandbox.upload_runner(), spec.output_limit)
        except BaseException:
            await sandbox.kill()
            raise
        return sandbox

    def _take_key(self, spec: SandboxSpec) -> str:
        """The idempotency key of a creation: an answer uses it up, a refusal too, which E2B might repeat.

        It is taken, since a run may be taken anew while its creation before is still being ended.
        """
        now = asyncio.get_running_loop().time()
        self._keys = {run: kept for run, kept in self._keys.items() if kept[1] > now}
        key, _ = self._keys.pop(spec.flow_run, ("", now))
        return key or f"nova-{spec.flow_run}-{secrets.token_hex(8)}"

    def _in(self, place: e2b.AsyncSandbox) -> E2BSandbox:
        return E2BSandbox(place, self._api_key, self._grace, ended=self._turns.release)

    def _note_missing(self) -> None:
        if self._installed:
            log.warning(
                "E2B template %s does not hold this version's runner, which is uploaded into each sandbox "
                "instead. Build the template anew: nova template build",
                self._template,
            )
        self._installed = False

    async def _make(self, spec: SandboxSpec, key: str) -> e2b.AsyncSandbox:
        making = asyncio.create_task(
            e2b.AsyncSandbox.create(
                template=self._template,
                timeout=_lifetime(spec),
                metadata=spec.metadata | self._mark,
                idempotency_key=key,
                api_key=self._api_key,
                request_timeout=CREATION,
                retries=0,  # the SDK's would not keep the pace
            )
        )
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await self._bury(making)
            raise
        except Exception as error:
            raise sandbox_error(error, "No E2B sandbox could be made") from error

    async def _bury(self, making: asyncio.Future[e2b.AsyncSandbox]) -> None:
        """End the sandbox that comes of a creation for which nobody waits any more; only its answer names it.

        It is ended even if nobody waits for that either.
        """

        async def dispose_stale() -> None:
            await asyncio.wait({making})
            if not making.cancelled() and making.exception() is None:
                with contextlib.suppress(SandboxError):  # the cleanup finds it
                    await e2b_sandbox.kill(making.result().sandbox_id, self._api_key)

        burial = asyncio.create_task(dispose_stale())
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        await asyncio.shield(burial)

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox by its id; one that is gone is no error; raises SandboxError."""
        await e2b_sandbox.kill(sandbox_id, self._api_key)

    async def list(self) -> Sequence[FoundSandbox]:
        """The sandboxes of this installation's runs that E2B knows; raises SandboxError."""
        ours = e2b.SandboxQuery(metadata={"nova": "run", **self._mark})
        found: list[e2b.SandboxInfo] = []
        try:
            pages = e2b.AsyncSandbox.list(ours, api_key=self._api_key, request_timeout=e2b_sandbox.REQUEST)
            while pages.has_next:
                found += await pages.next_items()
        except Exception as error:
            raise sandbox_error(error, "E2B does not tell which sandboxes there are") from error
        return [
            FoundSandbox(one.sandbox_id, _uuid(one.metadata.get("flow_run")), one.started_at) for one in found
        ]


def _lifetime(spec: SandboxSpec) -> int:
    """Seconds after which E2B ends a run's sandbox if nobody else does."""
    return math.ceil(spec.timeout) + MARGIN


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None
