"""E2B's limits: a creation waits its turn, and only impatience ends the wait."""

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
    """Make sandboxes at the same time."""
    return await asyncio.gather(*(provider.create(spec()) for _ in range(number)))


async def kill(*sandboxes: Sandbox) -> None:
    """End sandboxes."""
    await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))


async def until_refused(e2b_server: E2BServer) -> None:
    """Wait until E2B has refused a creation because of its limits."""

    async def refused() -> int:
        return e2b_server.places.too_many

    await eventually(refused, lambda number: number > 0)


async def test_a_known_rate_is_kept(e2b_server: E2BServer) -> None:
    """Where the rate is a setting, E2B never has to refuse."""
    e2b_server.places.creations_per_second = 5
    asked = datetime.now(UTC)
    sandboxes = await create(E2BProvider(throttle=CreationThrottle(per_second=5)), 9)
    assert e2b_server.places.too_many == 0
    last = max(place.started for place in e2b_server.sandboxes)
    assert (last - asked).total_seconds() > 8 / 5 - 0.1
    assert await Bench(sandboxes[-1]).changes("context['a'] = 1") == {"a": 1}
    await kill(*sandboxes)


async def test_an_unknown_rate_is_waited_out(e2b_server: E2BServer) -> None:
    """Where E2B says that it is too fast, or another worker was faster, the creation is tried again."""
    e2b_server.places.creations_per_second = 3
    first, second = E2BProvider(), E2BProvider()  # of two workers
    made = await asyncio.gather(create(first, 5), create(second, 5))
    assert e2b_server.places.too_many > 0
    assert len(e2b_server.sandboxes) == 10
    await kill(*made[0], *made[1])


async def test_one_asks_for_all_that_wait(e2b_server: E2BServer) -> None:
    """Creations that were refused do not ask for nothing at the same time, and use every turn that comes."""
    e2b_server.places.creations_per_second = 5
    sandboxes = await create(E2BProvider(), 15)
    assert e2b_server.places.too_many < 40  # each once, then one after the other, a tenth of a second apart
    await kill(*sandboxes)


async def test_slow_starts_do_not_hold_up_who_waits(e2b_server: E2BServer) -> None:
    """A sandbox that was granted takes its time to start; the next in line asks meanwhile."""
    e2b_server.places.creations_per_second = 3
    e2b_server.hold()
    making = asyncio.create_task(create(E2BProvider(), 9))

    async def granted() -> int:
        return e2b_server.places.asked

    await eventually(granted, lambda number: number == 9)
    assert e2b_server.places.too_many > 0
    assert e2b_server.sandboxes == []
    e2b_server.release()
    await kill(*await making)


async def test_a_busy_e2b_is_waited_out(e2b_server: E2BServer) -> None:
    """No capacity at the moment is no failure: the creation is made once E2B has some."""
    e2b_server.places.refuse_with = (503, "no node is free")
    making = asyncio.create_task(E2BProvider().create(spec()))

    async def refused() -> int:
        return e2b_server.places.refused

    await eventually(refused, lambda number: number > 1)
    e2b_server.places.refuse_with = None
    await kill(await making)


async def test_a_known_number_of_places_is_kept(e2b_server: E2BServer) -> None:
    """The one too many asks E2B for nothing until another has ended."""
    e2b_server.places.at_once = 2
    provider = E2BProvider(throttle=CreationThrottle(at_once=2))
    first, second = await create(provider, 2)
    waiting = asyncio.create_task(provider.create(spec()))
    await Bench(second).run("pass")
    assert not waiting.done()
    await kill(first)
    third = await waiting
    assert e2b_server.places.too_many == 0
    await kill(second, third)


async def test_an_unknown_number_of_places_is_waited_out(e2b_server: E2BServer) -> None:
    """Where another worker holds the last place, its end is waited for."""
    e2b_server.places.at_once = 1
    other = await E2BProvider().create(spec())
    waiting = asyncio.create_task(E2BProvider().create(spec()))
    await until_refused(e2b_server)
    assert not waiting.done()
    await kill(other)
    await kill(await waiting)


async def test_however_a_sandbox_ends_its_place_is_free(e2b_server: E2BServer) -> None:
    """Vanished, never started, or killed twice: the next one gets the place, and only one does."""
    provider = E2BProvider(throttle=CreationThrottle(at_once=1, patience=20))
    vanished = await provider.create(spec())
    e2b_server.vanish(vanished.id)
    await kill(vanished, vanished)
    e2b_server.places.envs = {"PATH": "/nowhere"}
    with pytest.raises(SandboxError, match="python3"):
        await provider.create(spec())
    e2b_server.places.envs = {}
    e2b_server.places.refuse_with = (400, "no such template")
    with pytest.raises(SandboxError, match="template"):
        await provider.create(spec())
    e2b_server.places.refuse_with = None
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
    """A turn that does not come is a SandboxError of its own reason, after the time that was set."""
    e2b_server.places.at_once = 1
    provider = E2BProvider(throttle=throttle)
    first = await provider.create(spec())
    async with asyncio.timeout(60):
        with pytest.raises(SandboxError, match=r"waited 0\.4 s for its turn") as caught:
            await provider.create(spec())
    assert caught.value.reason == "no_turn"
    await kill(first)
    await kill(await provider.create(spec()))


async def test_the_pace_tries_patience_too(e2b_server: E2BServer) -> None:
    """Of many at a slow pace those that would come too late are told so."""
    provider = E2BProvider(throttle=CreationThrottle(per_second=0.5, patience=1))
    made = await asyncio.gather(*(provider.create(spec()) for _ in range(3)), return_exceptions=True)
    errors = [each for each in made if isinstance(each, SandboxError)]
    assert [error.reason for error in errors] == ["no_turn", "no_turn"]
    assert e2b_server.places.asked == 1
    await kill(*(each for each in made if not isinstance(each, BaseException)))


@pytest.mark.parametrize("seconds", [0.0, 2 * REFUSAL_TIME])
async def test_a_sandbox_that_comes_as_its_run_is_stopped_is_ended(seconds: float) -> None:
    """In the very turn of the loop in which it is made, at once or after a while: it is not lost."""
    asked = 0
    ended = []

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise SandboxError("Not now.", reason="busy")
        await asyncio.sleep(seconds)  # what a start takes
        asyncio.get_running_loop().call_soon(making.cancel)
        return "a sandbox"

    async def dispose_stale(coming: asyncio.Future[str]) -> None:
        await asyncio.wait({coming})
        ended.append(coming.result())

    making = asyncio.create_task(CreationThrottle().make(attempt, dispose_stale))
    await asyncio.wait({making})
    assert making.cancelled()
    assert ended == ["a sandbox"]


async def test_who_stops_waiting_takes_no_place(e2b_server: E2BServer) -> None:
    """A cancelled wait, for a place, for the pace or after a refusal, ends at once and leaves nothing."""
    provider = E2BProvider(throttle=CreationThrottle(per_second=5, at_once=2))
    e2b_server.places.at_once = 1
    first = await provider.create(spec())
    refused = asyncio.create_task(provider.create(spec()))
    await until_refused(e2b_server)
    without_place = asyncio.create_task(provider.create(spec()))
    await asyncio.sleep(0)
    for waiting in (without_place, refused):
        waiting.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait({refused, without_place})
    assert refused.cancelled()
    assert without_place.cancelled()
    e2b_server.places.at_once = None
    second = await provider.create(spec())
    assert len(e2b_server.sandboxes) == 2
    await kill(first, second)
