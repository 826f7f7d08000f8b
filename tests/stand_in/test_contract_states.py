"""The states of flow runs: what the stand-in does with a proposal is what Prefect's server does."""

from __future__ import annotations

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


async def try_all(talk: Conversation, run: JSON, states: list[str], *, force: bool) -> None:
    """Propose each state in each, on a walk: from the state that the run is in, what was not tried in it yet.

    Where nothing is left to try the run is forced into a state in which something is.
    """
    left = {source: list(states) for source in states}
    while any(left.values()):
        if goals := left[run["state"]["name"]]:
            await propose(talk, run, goals.pop(0), force)
        else:
            await propose(talk, run, next(source for source, goals in left.items() if goals), force=True)


async def test_every_state_proposed_in_every_state(real: Conversation, stand_in: Conversation) -> None:
    """Whether a state is accepted, refused, or replaced by another one depends on the two states."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        await try_all(talk, run, list(STATES), force=False)
        await place.read(run)

    await assert_same(story, real, stand_in)


async def test_every_state_forced_in_every_state(real: Conversation, stand_in: Conversation) -> None:
    """Force leaves two rules: a run without a process is cancelled at once, and results are not lost."""

    async def story(talk: Conversation) -> None:
        place = await Place(talk).make()
        run = await place.run()
        await try_all(talk, run, [*TYPES, "Suspended"], force=True)
        await place.read(run)

    await assert_same(story, real, stand_in)
