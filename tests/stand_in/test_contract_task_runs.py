"""Task runs: creating, finding and ending them is answered as by Prefect's server."""

from __future__ import annotations

from uuid import uuid4

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON

TYPES = [
    "SCHEDULED",
    "PENDING",
    "RUNNING",
    "PAUSED",
    "CANCELLING",
    "CANCELLED",
    "COMPLETED",
    "FAILED",
    "CRASHED",
]


async def task_run(talk: Conversation, flow_run: JSON, key: str, **fields: object) -> JSON:
    """Create a task run."""
    body = {"flow_run_id": flow_run["id"], "name": key, "task_key": key, "dynamic_key": "0", **fields}
    answer: JSON = await talk.ask("POST", "/task_runs/", body)
    return answer


async def test_every_state_proposed_in_every_state(real: Conversation, stand_in: Conversation) -> None:
    """Whether a task run's state is accepted, refused or replaced depends on it and on its flow run."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        flow_run = await place.run(state={"type": "RUNNING"})
        run = await task_run(talk, flow_run, "task")
        left = {source: list(TYPES) for source in TYPES}
        while any(left.values()):
            here, held = run["state"]["type"], run["state"]["id"]
            force = not left[here]
            goal = next(source for source in TYPES if left[source]) if force else left[here].pop(0)
            body = {"state": {"type": goal}, "force": force}
            status, answer = await talk.silently("POST", f"/task_runs/{run['id']}/set_state", body)
            run["state"] = state = answer["state"]
            kept = state["id"] == held
            talk.write(f"{here} → {goal} {force}: {status} {state['name']} {kept} {answer['details']}")
        await talk.ask("GET", f"/task_runs/{run['id']}")

    await assert_same(story, real, stand_in)


async def test_tasks_of_flows_that_do_not_run(real: Conversation, stand_in: Conversation) -> None:
    """A task runs only while its flow runs; it may end at any time."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        for name, state in (
            ("scheduled", {"type": "SCHEDULED"}),
            ("paused", {"type": "PAUSED", "state_details": {"pause_reschedule": True}}),
            ("failed", {"type": "FAILED"}),
        ):
            flow_run = await place.run(name, state=state)
            run = await task_run(talk, flow_run, name)
            path = f"/task_runs/{run['id']}"
            await talk.ask("POST", f"{path}/set_state", {"state": {"type": "RUNNING"}})
            await talk.ask("POST", f"{path}/set_state", {"state": {"type": "CRASHED", "message": "gone"}})
            await talk.ask("GET", path)

    await assert_same(story, real, stand_in)


async def test_retries_of_a_task(real: Conversation, stand_in: Conversation) -> None:
    """A task with retries left waits for the next; a run of its flow anew gives it all of them again."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        flow_run = await place.run(state={"type": "RUNNING"})
        policy = {"retries": 1, "retry_delay": 0}
        run = await task_run(talk, flow_run, "task", empirical_policy=policy, state={"type": "RUNNING"})
        path = f"/task_runs/{run['id']}"
        for state in ("FAILED", "RUNNING", "FAILED", "RUNNING", "COMPLETED"):
            await talk.ask("POST", f"{path}/set_state", {"state": {"type": state}})
            await talk.ask("GET", path)
        await place.set_state(flow_run, "SCHEDULED", force=True)
        await place.set_state(flow_run, "RUNNING", force=True)
        await talk.ask("POST", f"{path}/set_state", {"state": {"type": "RUNNING"}})
        await talk.ask("GET", path)

    await assert_same(story, real, stand_in)


async def test_task_runs(real: Conversation, stand_in: Conversation) -> None:
    """Task runs are found as NOVA looks for them, are made once, renamed, and go with their flow run."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        going = await place.run("going", state={"type": "RUNNING"})
        over = await place.run("over", state={"type": "CRASHED"})
        for flow_run in (going, over):
            for key, state in (("a", "PENDING"), ("b", "RUNNING"), ("c", "COMPLETED")):
                await task_run(talk, flow_run, key, state={"type": state}, task_inputs={"x": []})
        same = await task_run(talk, going, "a", name="other", tags=["t"])

        async def find(**wanted: object) -> None:
            _, found = await talk.silently("POST", "/task_runs/filter", wanted)
            names = sorted((talk.comparable(run["flow_run_id"]), run["name"]) for run in found)
            talk.write(f"{wanted}: {names}")

        flow = {"name": {"any_": [f"flow-{place.mark}"]}}
        open_ = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
        final = {"state": {"type": {"any_": ["SCHEDULED", "CRASHED", "FAILED"]}}}
        await find(flows=flow, flow_runs={"id": {"any_": [going["id"]]}}, task_runs=open_, limit=200)
        await find(flows=flow, flow_runs=final, task_runs=open_)
        await find(flow_runs={"id": {"any_": [over["id"]]}})
        await find(task_runs={"flow_run_id": {"any_": [over["id"]]}, "name": {"any_": ["c"]}})
        await find(task_runs={"id": {"any_": [same["id"]]}})
        await talk.ask("PATCH", f"/task_runs/{same['id']}", {"name": "renamed"})
        await talk.ask("GET", f"/task_runs/{same['id']}")
        await talk.ask("DELETE", f"/flow_runs/{over['id']}")
        await find(task_runs={"flow_run_id": {"any_": [over["id"]]}})
        await talk.ask("DELETE", f"/task_runs/{same['id']}")
        for method, body in (("GET", None), ("DELETE", None)):
            await talk.ask(method, f"/task_runs/{uuid4()}", body)
        await talk.ask("POST", f"/task_runs/{uuid4()}/set_state", {"state": {"type": "RUNNING"}})

    await assert_same(story, real, stand_in)
