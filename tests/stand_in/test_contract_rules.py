"""The rules of states that depend on more than the two states: times, retries, pauses, doubles, results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.stand_in.conversation import Conversation, Place, assert_same


def from_now(**ahead: float) -> str:
    """A time as clients send it."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


async def test_a_life(real: Conversation, stand_in: Conversation) -> None:
    """A run notes its starts, its times and all of its states, oldest first, with what the client said."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run(parameters={"a": 1}, tags=["b"])
        await place.set_state(run, "PENDING", message="taken")
        await place.set_state(run, "RUNNING", name="Executing")
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry", message="again")
        await place.read(run)
        await place.set_state(run, "PENDING")
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "COMPLETED", data={"type": "unpersisted"})
        await place.read(run)
        await place.set_state(run, "SCHEDULED")
        await place.read(run)
        states = await talk.ask("GET", f"/flow_run_states/?flow_run_id={run['id']}")
        await talk.ask("GET", f"/flow_run_states/{states[1]['id']}")
        await talk.ask("GET", f"/flow_run_states/{uuid4()}")
        await talk.ask("GET", f"/flow_run_states/?flow_run_id={uuid4()}")
        times = [state["timestamp"] for state in states]
        assert times == sorted(set(times))

    await assert_same(story, real, stand_in)


async def test_doubles(real: Conversation, stand_in: Conversation) -> None:
    """A transition's id is kept with the state and given back; the same one twice in a row is refused."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        once, again = ({"transition_id": str(uuid4())} for _ in range(2))
        first = await place.set_state(run, "PENDING", state_details=once)
        assert (await place.set_state(run, "PENDING", state_details=once))["state"]["id"] == first["state"][
            "id"
        ]
        await place.set_state(run, "RUNNING", state_details=once)
        await place.set_state(run, "RUNNING", state_details=again)
        await place.set_state(run, "RUNNING", state_details=again)
        await place.set_state(run, "COMPLETED", state_details=once)
        await place.set_state(run, "COMPLETED", force=True, state_details=once)
        shown = (await place.read(run))["state"]["state_details"]["transition_id"]
        states = await talk.ask("GET", f"/flow_run_states/?flow_run_id={run['id']}")
        assert shown == once["transition_id"]
        assert [state["state_details"]["transition_id"] for state in states[1:3]] == [
            once["transition_id"],
            again["transition_id"],
        ]

    await assert_same(story, real, stand_in)


async def test_too_early(real: Conversation, stand_in: Conversation) -> None:
    """A run may be taken before its time, but not start: the server's clock says how long to wait."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        later = {"scheduled_time": from_now(hours=1)}
        run = await place.run(state={"type": "SCHEDULED", "state_details": later})
        for state in ("RUNNING", "PENDING", "RUNNING"):
            body = {"state": {"type": state}}
            status, answer = await talk.silently("POST", f"/flow_runs/{run['id']}/set_state", body)
            seconds = answer["details"].pop("delay_seconds", None)
            assert seconds is None or 3500 < seconds <= 3600
            talk.write(f"{status} {talk.comparable(answer)}")
        await place.set_state(run, "RUNNING", force=True)
        await place.read(run)
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry", state_details=later)
        await place.read(run)
        await place.set_state(run, "SCHEDULED", name="AwaitingRetry")
        await place.set_state(run, "PENDING", state_details=later)
        await place.read(run)

    await assert_same(story, real, stand_in)


async def test_retries_of_the_flow(real: Conversation, stand_in: Conversation) -> None:
    """A flow with retries waits in its own process for the next: no worker is shown it meanwhile."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        policy = {"empirical_policy": {"retries": 1, "retry_delay": 0}}
        await talk.ask("PATCH", f"/flow_runs/{run['id']}", policy)
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "FAILED", message="once", data={"type": "unpersisted"})
        await place.read(run)
        assert await place.due() == []
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "FAILED", message="twice")
        await place.read(run)
        await place.set_state(run, "SCHEDULED")
        await place.read(run)
        assert await place.due() == ["run"]

    await assert_same(story, real, stand_in)


async def test_pauses(real: Conversation, stand_in: Conversation) -> None:
    """A pause has a key that counts once, and a time after which the run can only fail, or be cancelled."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        await talk.ask("POST", f"/flow_runs/{run['id']}/resume")
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "PAUSED", state_details={"pause_key": "k"})
        await place.read(run)
        await talk.ask("POST", f"/flow_runs/{run['id']}/resume")
        await place.read(run)
        await place.set_state(run, "PAUSED", state_details={"pause_key": "k"})
        past = {"pause_key": "l", "pause_timeout": from_now(seconds=-1)}
        await place.set_state(run, "PAUSED", state_details=past)
        await place.set_state(run, "RUNNING")
        await place.read(run)
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "PAUSED", state_details=past)
        await place.set_state(run, "CANCELLING")
        await place.read(run)

    await assert_same(story, real, stand_in)


async def test_suspension(real: Conversation, stand_in: Conversation) -> None:
    """A suspended run that is resumed is due again, and goes on without counting a start."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()

        async def suspend(key: str) -> None:
            details = {"pause_reschedule": True, "pause_key": key}
            await place.set_state(run, "PAUSED", name="Suspended", state_details=details)

        await place.set_state(run, "RUNNING")
        await suspend("a")
        assert await place.due() == []
        await place.set_state(run, "PENDING")
        await place.read(run)
        await talk.ask("POST", f"/flow_runs/{run['id']}/resume")
        assert await place.due() == ["run"]
        await place.set_state(run, "PENDING")
        await place.set_state(run, "RUNNING")
        assert (await place.read(run))["run_count"] == 1
        await suspend("b")
        await place.set_state(run, "CANCELLING")
        await place.read(run)

    await assert_same(story, real, stand_in)


async def test_cancelling_with_a_process(real: Conversation, stand_in: Conversation) -> None:
    """A run that has a process is not cancelled at once while it waits, unless it is resuming."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        for name in ("AwaitingRetry", "Resuming"):
            run = await place.run(state={"type": "SCHEDULED", "name": name})
            await talk.ask("PATCH", f"/flow_runs/{run['id']}", {"infrastructure_pid": "host:1"})
            await place.set_state(run, "CANCELLING")
            await place.set_state(run, "CANCELLING")
            await place.read(run)

    await assert_same(story, real, stand_in)


async def test_results(real: Conversation, stand_in: Conversation) -> None:
    """A completed run with a kept result is not run again, and its result is not lost even by force."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "COMPLETED", data={"type": "file", "path": "there"})
        await place.read(run)
        await place.set_state(run, "SCHEDULED")
        await place.set_state(run, "COMPLETED")
        await place.set_state(run, "COMPLETED", force=True)
        await place.set_state(run, "COMPLETED", data={"type": "file", "path": "elsewhere"})
        await place.set_state(run, "FAILED")
        await place.set_state(run, "SCHEDULED")

    await assert_same(story, real, stand_in)


async def test_runs_without_a_deployment(real: Conversation, stand_in: Conversation) -> None:
    """A run that no deployment has is neither scheduled again nor suspended."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await talk.ask("POST", "/flow_runs/", {"flow_id": place.flow_id, "name": "run"})
        await place.set_state(run, "RUNNING")
        await place.set_state(run, "PAUSED", state_details={"pause_reschedule": True})
        await place.set_state(run, "CRASHED")
        await place.set_state(run, "SCHEDULED")
        await place.set_state(run, "PENDING")
        key = {"flow_id": place.flow_id, "name": "run", "idempotency_key": "k", "state": {"type": "RUNNING"}}
        await talk.ask("POST", "/flow_runs/", key)
        await talk.ask("POST", "/flow_runs/", key)
        await talk.ask("POST", "/flow_runs/", {**key, "work_pool_name": place.pool, "idempotency_key": None})

    await assert_same(story, real, stand_in)
