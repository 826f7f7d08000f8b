"""Limits of deployments: who gets a slot, what becomes of the others, and when a slot is free again."""

from __future__ import annotations

from itertools import product

import pytest

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON


async def slots(talk: Conversation, place: Place) -> None:
    """Write down how many slots are taken."""
    deployment = await talk.ask("GET", f"/deployments/{place.deployment_id}")
    limit = deployment["global_concurrency_limit"]
    talk.write(f"slots: {limit and (limit['active_slots'], limit['limit'])}")


async def limited(talk: Conversation, limit: int, strategy: str | None = None) -> Place:
    """Make a deployment with a limit."""
    options: JSON = {"concurrency_options": {"collision_strategy": strategy}} if strategy else {}
    return await Place(talk).make(concurrency_limit=limit, **options)


@pytest.mark.parametrize("strategy", ["ENQUEUE", "CANCEL_NEW", None])
async def test_full(real: Conversation, stand_in: Conversation, strategy: str | None) -> None:
    """What finds no slot waits half a minute for one, or is cancelled, as the deployment says."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 1, strategy)
        first, second = await place.run("first"), await place.run("second")
        await place.set_state(first, "PENDING")
        await slots(talk, place)
        await place.set_state(second, "PENDING")
        await place.read(second)
        assert await place.due() == (["second"] if strategy != "CANCEL_NEW" else [])
        await place.set_state(first, "RUNNING")
        await place.set_state(second, "PENDING")
        await place.set_state(first, "COMPLETED")
        await slots(talk, place)
        await place.set_state(second, "PENDING")
        await slots(talk, place)
        await place.read(second)
        failed = await place.run("failed", state={"type": "FAILED"})
        await place.set_state(failed, "PENDING")
        await place.read(failed)

    await assert_same(story, real, stand_in)


async def test_release(real: Conversation, stand_in: Conversation) -> None:
    """A slot is free when its run leaves Pending, Running and Cancelling, by force too."""
    ends = [
        ("RUNNING", "COMPLETED"),
        ("RUNNING", "SCHEDULED"),
        ("RUNNING", "PAUSED"),
        ("RUNNING", "CANCELLING", "CANCELLED"),
        ("CRASHED",),
    ]

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 2)
        for end, force in product(ends, (False, True)):
            run = await place.run()
            await place.set_state(run, "PENDING")
            for state in end:
                await place.set_state(run, state, force=force)
            await slots(talk, place)
            await place.set_state(run, "FAILED", force=True)
        await slots(talk, place)

    await assert_same(story, real, stand_in)


async def test_without_a_lease(real: Conversation, stand_in: Conversation) -> None:
    """Force takes no slot but gives one back, and a deleted run gives back what it has."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 3)
        first, second = await place.run("first"), await place.run("second")
        await place.set_state(first, "PENDING")
        await place.set_state(second, "PENDING")
        forced = await place.run("forced", state={"type": "RUNNING"})
        await slots(talk, place)
        await place.set_state(forced, "COMPLETED")
        await slots(talk, place)
        await place.set_state(first, "RUNNING", force=True)
        await place.set_state(first, "COMPLETED")
        await slots(talk, place)
        await talk.ask("DELETE", f"/flow_runs/{second['id']}")
        await slots(talk, place)

    await assert_same(story, real, stand_in)


async def test_changed_limits(real: Conversation, stand_in: Conversation) -> None:
    """A changed limit counts at once; once it is gone, who holds one of its slots cannot end."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 1)
        path = f"/deployments/{place.deployment_id}"
        runs = [await place.run(f"run {number}") for number in range(4)]
        await place.set_state(runs[0], "PENDING")
        await talk.ask("PATCH", path, {"concurrency_limit": 2})
        await place.set_state(runs[1], "PENDING")
        await talk.ask("PATCH", path, {"concurrency_limit": 1})
        await slots(talk, place)
        await place.set_state(runs[1], "CRASHED")
        await place.set_state(runs[2], "PENDING")
        await talk.ask("PATCH", path, {"concurrency_limit": None})
        await slots(talk, place)
        await place.set_state(runs[2], "PENDING")
        await place.set_state(runs[0], "RUNNING")
        await place.set_state(runs[0], "COMPLETED", force=True)
        await place.read(runs[0])
        await talk.ask("PATCH", path, {"concurrency_limit": 1})
        await place.set_state(runs[2], "FAILED")
        await slots(talk, place)

    await assert_same(story, real, stand_in)


async def test_a_limit_set_by_hand(real: Conversation, stand_in: Conversation) -> None:
    """An operator changes a limit by its name; where it is 0 nobody gets a slot, nor waits for one."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 1)
        run = await place.run()
        path = f"/v2/concurrency_limits/deployment:{place.deployment_id}"
        await talk.ask("PATCH", path, {"limit": 0})
        await place.set_state(run, "PENDING")
        await slots(talk, place)
        await talk.ask("PATCH", path, {"limit": 2, "active_slots": 1})
        await place.set_state(run, "PENDING")
        await slots(talk, place)
        await talk.ask("PATCH", "/v2/concurrency_limits/none", {"limit": 2})

    await assert_same(story, real, stand_in)


async def test_leases(real: Conversation, stand_in: Conversation) -> None:
    """A lease can be renewed while its run holds it, and no longer."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 1)
        run = await place.run()
        pending = await place.set_state(run, "PENDING")
        lease = pending["state"]["state_details"]["deployment_concurrency_lease_id"]
        path = f"/v2/concurrency_limits/leases/{lease}/renew"
        await talk.ask("POST", path, {"lease_duration": 300})
        await place.set_state(run, "RUNNING")
        await talk.ask("POST", path, {"lease_duration": 300})
        await place.set_state(run, "COMPLETED")
        await talk.ask("POST", path, {"lease_duration": 300})

    await assert_same(story, real, stand_in)


async def test_a_deployment_deleted_under_its_runs(real: Conversation, stand_in: Conversation) -> None:
    """Who holds a slot of a deleted deployment cannot end; who waits in it is nobody's any more."""

    async def story(talk: Conversation) -> None:
        place = await limited(talk, 1)
        running, waiting = await place.run("running"), await place.run("waiting")
        retrying = await place.run("retrying", state={"type": "RUNNING"})
        failed = await place.run("failed", state={"type": "FAILED"})
        await place.set_state(running, "PENDING")
        await place.set_state(waiting, "PENDING")
        await place.set_state(retrying, "SCHEDULED", name="AwaitingRetry")
        await talk.ask("DELETE", f"/deployments/{place.deployment_id}")
        await talk.ask("DELETE", f"/deployments/{place.deployment_id}")
        for run in (running, waiting, retrying, failed):
            await place.read(run)
        await place.set_state(running, "RUNNING")
        await place.set_state(running, "COMPLETED")
        await place.read(running)
        await place.set_state(running, "CANCELLING")
        await place.set_state(waiting, "PENDING")
        await place.set_state(waiting, "SCHEDULED", name="AwaitingRetry")
        await place.set_state(retrying, "PENDING")
        await place.set_state(retrying, "CANCELLING")
        await place.set_state(failed, "SCHEDULED")
        await place.set_state(failed, "PENDING")
        await place.run("new")

    await assert_same(story, real, stand_in)
