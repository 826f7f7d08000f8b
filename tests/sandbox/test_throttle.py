"""E2B's limits: a creation waits for its turn, at most for `patience` seconds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from flows.graphs.errors import SandboxError
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.e2b.throttle import REFUSAL_TIME, CreationThrottle
from flows.sandbox.port import Sandbox
from tests.e2b_server.fixture import E2BServer
from tests.sandbox.conftest import Bench, spec
from tests.waiting import eventually


async def create(provider: E2BProvider, number: int) -> list[Sandbox]:
    """Create sandboxes at the same time."""
    return await asyncio.gather(*(provider.create(spec()) for _ in range(number)))


async def kill(*sandboxes: Sandbox) -> None:
    """End sandboxes."""
    await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))


async def until_refused(e2b_server: E2BServer) -> None:
    """Wait until E2B has refused a creation because of its limits."""

    async def refused() -> int:
        return e2b_server.cloud.too_many

    await eventually(refused, lambda number: number > 0)


async def test_a_known_rate_is_kept(e2b_server: E2BServer) -> None:
    """With the rate as a setting, E2B refuses no creation."""
    e2b_server.cloud.creations_per_second = 5
    asked = datetime.now(UTC)
    sandboxes = await create(E2BProvider(throttle=CreationThrottle(per_second=5)), 9)
    assert e2b_server.cloud.too_many == 0
    last = max(remote.started for remote in e2b_server.sandboxes)
    assert (last - asked).total_seconds() > 8 / 5 - 0.1
    assert await Bench(sandboxes[-1]).changes("context['a'] = 1") == {"a": 1}
    await kill(*sandboxes)


async def test_a_creation_beyond_the_rate_is_retried(e2b_server: E2BServer) -> None:
    """When E2B refuses creations because of its rate, they are retried and succeed."""
    e2b_server.cloud.creations_per_second = 3
    first, second = E2BProvider(), E2BProvider()  # of two workers
    made = await asyncio.gather(create(first, 5), create(second, 5))
    assert e2b_server.cloud.too_many > 0
    assert len(e2b_server.sandboxes) == 10
    await kill(*made[0], *made[1])


async def test_only_the_first_in_line_retries(e2b_server: E2BServer) -> None:
    """Refused creations do not all retry at once, and still use every free slot."""
    e2b_server.cloud.creations_per_second = 5
    sandboxes = await create(E2BProvider(), 15)
    assert e2b_server.cloud.too_many < 40  # each once, then one at a time, 0.1 s apart
    await kill(*sandboxes)


async def test_slow_starts_do_not_delay_the_line(e2b_server: E2BServer) -> None:
    """While an accepted sandbox starts, the next in line tries."""
    e2b_server.cloud.creations_per_second = 3
    e2b_server.hold()
    making = asyncio.create_task(create(E2BProvider(), 9))

    async def granted() -> int:
        return e2b_server.cloud.asked

    await eventually(granted, lambda number: number == 9)
    assert e2b_server.cloud.too_many > 0
    assert e2b_server.sandboxes == []
    e2b_server.release()
    await kill(*await making)


async def test_a_busy_e2b_is_retried(e2b_server: E2BServer) -> None:
    """When E2B has no capacity, the creation is retried until it has."""
    e2b_server.cloud.refuse_with = (503, "no node is free")
    making = asyncio.create_task(E2BProvider().create(spec()))

    async def refused() -> int:
        return e2b_server.cloud.refused

    await eventually(refused, lambda number: number > 1)
    e2b_server.cloud.refuse_with = None
    await kill(await making)


async def test_the_number_of_sandboxes_is_limited(e2b_server: E2BServer) -> None:
    """Beyond the limit a creation does not ask E2B until another sandbox has ended."""
    e2b_server.cloud.at_once = 2
    provider = E2BProvider(throttle=CreationThrottle(at_once=2))
    first, second = await create(provider, 2)
    waiting = asyncio.create_task(provider.create(spec()))
    await Bench(second).run("pass")
    assert not waiting.done()
    await kill(first)
    third = await waiting
    assert e2b_server.cloud.too_many == 0
    await kill(second, third)


async def test_a_creation_waits_for_another_worker_s_sandbox(e2b_server: E2BServer) -> None:
    """When other workers use all of the account's sandboxes, a creation waits until one ends."""
    e2b_server.cloud.at_once = 1
    other = await E2BProvider().create(spec())
    waiting = asyncio.create_task(E2BProvider().create(spec()))
    await until_refused(e2b_server)
    assert not waiting.done()
    await kill(other)
    await kill(await waiting)


async def test_every_end_of_a_sandbox_frees_its_slot(e2b_server: E2BServer) -> None:
    """A sandbox that vanished, never started or was killed twice frees exactly one slot."""
    provider = E2BProvider(throttle=CreationThrottle(at_once=1, patience=20))
    vanished = await provider.create(spec())
    e2b_server.vanish(vanished.id)
    await kill(vanished, vanished)
    e2b_server.cloud.envs = {"PATH": "/nowhere"}
    with pytest.raises(SandboxError, match="python3"):
        await provider.create(spec())
    e2b_server.cloud.envs = {}
    e2b_server.cloud.refuse_with = (400, "no such template")
    with pytest.raises(SandboxError, match="template"):
        await provider.create(spec())
    e2b_server.cloud.refuse_with = None
    last = await provider.create(spec())
    waiting = asyncio.create_task(provider.create(spec()))
    await Bench(last).run("pass")
    assert not waiting.done()
    await kill(last)
    await kill(await waiting)


@pytest.mark.parametrize(
    "throttle", [CreationThrottle(patience=0.4), CreationThrottle(at_once=1, patience=0.4)]
)
async def test_patience_ends(e2b_server: E2BServer, throttle: CreationThrottle) -> None:
    """After `patience` seconds without a turn, a creation raises SandboxError of reason `no_turn`."""
    e2b_server.cloud.at_once = 1
    provider = E2BProvider(throttle=throttle)
    first = await provider.create(spec())
    async with asyncio.timeout(60):
        with pytest.raises(SandboxError, match=r"waited 0\.4 s for its turn") as caught:
            await provider.create(spec())
    assert caught.value.reason == "no_turn"
    await kill(first)
    await kill(await provider.create(spec()))


async def test_patience_limits_the_wait_for_the_rate(e2b_server: E2BServer) -> None:
    """At a slow rate, creations whose turn would come too late raise SandboxError."""
    provider = E2BProvider(throttle=CreationThrottle(per_second=0.5, patience=1))
    made = await asyncio.gather(*(provider.create(spec()) for _ in range(3)), return_exceptions=True)
    errors = [each for each in made if isinstance(each, SandboxError)]
    assert [error.reason for error in errors] == ["no_turn", "no_turn"]
    assert e2b_server.cloud.asked == 1
    await kill(*(each for each in made if not isinstance(each, BaseException)))


@pytest.mark.parametrize("seconds", [0.0, 2 * REFUSAL_TIME])
async def test_a_sandbox_created_during_the_cancellation_is_ended(seconds: float) -> None:
    """A creation that is cancelled in the same loop iteration in which it succeeds ends its sandbox."""
    asked = 0
    ended = []

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise SandboxError("Not now.", reason="busy")
        await asyncio.sleep(seconds)  # the sandbox starts
        asyncio.get_running_loop().call_soon(making.cancel)
        return "a sandbox"

    async def dispose_stale(coming: asyncio.Future[str]) -> None:
        await asyncio.wait({coming})
        ended.append(coming.result())

    making = asyncio.create_task(CreationThrottle().make(attempt, dispose_stale))
    await asyncio.wait({making})
    assert making.cancelled()
    assert ended == ["a sandbox"]


async def test_a_cancelled_wait_takes_no_slot(e2b_server: E2BServer) -> None:
    """A cancelled wait, for a slot or after a refusal, ends at once and takes no slot."""
    provider = E2BProvider(throttle=CreationThrottle(per_second=5, at_once=2))
    e2b_server.cloud.at_once = 1
    first = await provider.create(spec())
    refused = asyncio.create_task(provider.create(spec()))
    await until_refused(e2b_server)
    without_slot = asyncio.create_task(provider.create(spec()))
    await asyncio.sleep(0)
    for waiting in (without_slot, refused):
        waiting.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait({refused, without_slot})
    assert refused.cancelled()
    assert without_slot.cancelled()
    e2b_server.cloud.at_once = None
    second = await provider.create(spec())
    assert len(e2b_server.sandboxes) == 2
    await kill(first, second)
