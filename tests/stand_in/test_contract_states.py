"""The states of flow runs: what the stand-in does with a proposal is what Prefect's server does."""

from __future__ import annotations

from itertools import combinations

from tests.stand_in.conversation import Conversation, Place, assert_same
from tests.stand_in.records import JSON

STATES: dict[str, JSON] = {
    "Scheduled": {"type": "SCHEDULED"},
    "Late": {"type": "SCHEDULED", "name": "Late"},
    "AwaitingRetry": {"type": "SCHEDULED", "name": "AwaitingRetry"},
    "AwaitingConcurrencySlot": {"type": "SCHEDULED", "name": "AwaitingConcurrencySlot"},
    "Resuming": {"type": "SCHEDULED", "name": "Resuming"},
    "Pending": {"type": "PENDING"},
    "Submitting": {"type": "PENDING", "name": "Submitting"},
    "Running": {"type": "RUNNING"},
    "Paused": {"type": "PAUSED"},
    "Suspended": {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}},
    "Cancelling": {"type": "CANCELLING"},
    "Cancelled": {"type": "CANCELLED"},
    "Completed": {"type": "COMPLETED"},
    "Failed": {"type": "FAILED"},
    "Crashed": {"type": "CRASHED"},
}
"""All that NOVA, its workers and people in Prefect's UI bring a run into."""

TYPES = [name for name, state in STATES.items() if name.upper() == state["type"]]


async def propose(talk: Conversation, run: JSON, state: str, force: bool) -> bool:
    """Propose a state to a run, write down what becomes of it, and tell whether the run kept its own."""
    body = {"state": STATES[state], "force": force}
    status, answer = await talk.silently("POST", f"/flow_runs/{run['id']}/set_state", body)
    became, before = answer["state"], run["state"]
    run["state"] = became
    kept: bool = became["id"] == before["id"]
    talk.write(
        f"{before['name']} → {state}{', forced' if force else ''}: {status} {answer['status']} "
        f"{became['type']} {became['name']}{', kept' if kept else ''} {answer['details']}"
    )
    return kept


async def test_every_state_proposed_in_every_state(real: Conversation, stand_in: Conversation) -> None:
    """Whether a state is accepted, refused, or replaced by another one depends on the two states.

    A run that kept its state is used again; one that did not is forced back first.
    """

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        for source in STATES:
            run = await place.run(state=STATES[source])
            for goal in STATES:
                if not await propose(talk, run, goal, force=False):
                    await propose(talk, run, source, force=True)
            await place.read(run)

    await assert_same(story, real, stand_in)


async def test_every_state_forced_in_every_state(real: Conversation, stand_in: Conversation) -> None:
    """Force leaves two rules: a run without a process is cancelled at once, and results are not lost."""

    async def story(talk: Conversation) -> None:
        run = await (await Place(talk).make()).run()
        for one, other in combinations([*TYPES, "Suspended"], 2):
            await propose(talk, run, one, force=True)
            await propose(talk, run, other, force=True)
            await propose(talk, run, one, force=True)
        for each in TYPES:
            await propose(talk, run, each, force=True)
            await propose(talk, run, each, force=True)

    await assert_same(story, real, stand_in)
