"""A conversation with a server of Prefect's, written down so that two of them can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
from prefect.client.orchestration import PrefectClient

from tests.stand_in.records import JSON

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_SETS = {"tags", "pause_keys"}
"""Lists whose order says nothing."""
_SECONDS = {"total_run_time", "estimated_run_time", "estimated_start_time_delta"}
_LATER = {"status", "last_polled"}
"""What the real server notes of a pool, a queue or a deployment some moments after it was polled."""

SHOWN = 3
"""How many differences are shown; most that come after the first come of it."""

Story = Callable[["Conversation"], Awaitable[None]]


class Conversation:
    """Requests and answers over Prefect's own client; ids and times are made comparable."""

    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.written: list[str] = []
        self._labels: dict[str, str] = {}

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the answer's body; both are written down with the status code."""
        status, answer = await self.silently(method, path, body)
        self.write(f"{method} {path} {json.dumps(body, sort_keys=True)}")
        self.write(f"→ {status} {self.comparable(answer)}")
        return answer

    async def silently(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request and return status and body, and write nothing down."""
        request = self.client._client.build_request(method, path, json=body)
        try:
            response = await self.client._client.send(request)
        except httpx.HTTPStatusError as error:
            response = error.response
        return response.status_code, response.json() if response.content else None

    def write(self, line: str) -> None:
        """Write a line down."""
        self.written.append(self._labelled(line))

    def comparable(self, answer: Any) -> str:
        """An answer as text without what differs from server to server."""
        return self._labelled(json.dumps(_plain(answer), sort_keys=True, ensure_ascii=False))

    def _labelled(self, text: str) -> str:
        def label(found: re.Match[str]) -> str:
            return self._labels.setdefault(found[0], f"<{len(self._labels) + 1}>")

        return _TIME.sub("<time>", _ID.sub(label, text))


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        is_polled = "last_polled" in value or "default_queue_id" in value
        return {k: _plain(v, k) for k, v in value.items() if not (is_polled and k in _LATER)}
    if isinstance(value, list):
        items = [_plain(each) for each in value]
        return sorted(items) if key in _SETS else items
    return "<seconds>" if key in _SECONDS and value is not None else value


async def assert_same(story: Story, real: Conversation, stand_in: Conversation) -> None:
    """Play a story to both servers and fail with the first lines in which their answers differ."""
    await story(real)
    await story(stand_in)
    differences = [
        f"after\n{before}\nthe real server\n{expected}\nthe stand-in\n{found}"
        for before, expected, found in zip(["", *real.written], real.written, stand_in.written, strict=False)
        if expected != found
    ]
    if differences:
        raise AssertionError("\n\n".join([f"{len(differences)} lines differ", *differences[:SHOWN]]))
    assert len(real.written) == len(stand_in.written)


class Place:
    """A pool with its queues, a flow and a deployment of this story's own, in a server."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self.mark = str(uuid4())
        self.pool = f"pool-{self.mark}"
        self.flow_id = ""
        self.deployment_id = ""

    async def make(self, **fields: Any) -> Place:
        """Make all of it; `fields` are the deployment's."""
        talk = self._talk
        await talk.ask("POST", "/work_pools/", {"name": self.pool, "type": "nova", "base_job_template": {}})
        for name, priority in (("high", 1), ("normal", 2), ("low", 3)):
            await talk.ask("POST", f"/work_pools/{self.pool}/queues", {"name": name, "priority": priority})
        self.flow_id = (await talk.ask("POST", "/flows/", {"name": f"flow-{self.mark}"}))["id"]
        self.deployment_id = (await self.deploy(**fields))["id"]
        return self

    async def deploy(self, name: str = "deployment", **fields: Any) -> JSON:
        """Create a deployment, or send its creation again."""
        known = {"work_pool_name": self.pool, "work_queue_name": "normal", "tags": ["a"]}
        body = {"flow_id": self.flow_id, "name": name, **known, **fields}
        answer: JSON = await self._talk.ask("POST", "/deployments/", body)
        return answer

    async def run(self, name: str = "run", **fields: Any) -> JSON:
        """Create a flow run of the deployment."""
        path = f"/deployments/{self.deployment_id}/create_flow_run"
        answer: JSON = await self._talk.ask("POST", path, {"name": name, **fields})
        return answer

    async def set_state(self, run: JSON, state: str, *, force: bool = False, **fields: Any) -> JSON:
        """Propose a state to a flow run."""
        body = {"state": {"type": state, **fields}, "force": force}
        answer: JSON = await self._talk.ask("POST", f"/flow_runs/{run['id']}/set_state", body)
        return answer

    async def read(self, run: JSON) -> JSON:
        """Read a flow run."""
        answer: JSON = await self._talk.ask("GET", f"/flow_runs/{run['id']}")
        return answer

    async def due(self, queues: tuple[str, ...] = (), **fields: Any) -> list[str]:
        """Look up the due runs of the pool; return their names."""
        path, body = f"/work_pools/{self.pool}/get_scheduled_flow_runs", {"work_queue_names": list(queues)}
        found = await self._talk.ask("POST", path, {**body, **fields})
        return [each["flow_run"]["name"] for each in found] if isinstance(found, list) else []
