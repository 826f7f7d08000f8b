"""Which process of a session runs which test: those that share an expensive server run in one.

xdist's own groups (`xdist_group`) do nothing under pytest 9.2: the group was written into an attribute of the
test's id that is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SERVERS = ("up", "stack", "private_server")
"""Fixtures of servers that are not shared by all processes: one process runs all tests that use one."""


_STARTING = ("acceptance", "deployments", "prefect_gateway", "worker")
"""Folders whose tests start processes and take long."""
_WAITING = ("api", "flows", "recovery", "sandbox", "stand_in")
"""Folders whose tests wait more than they work."""


def in_turns(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Order the tests so that some always wait while others keep the cores busy.

    The files of each kind are spread evenly over the session. Those that start processes have begun after
    four fifths of it: one that begins last holds everybody up.
    """
    kinds: dict[str, list[pytest.Item]] = {"starting": [], "waiting": [], "working": []}
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        kinds["starting" if folder in _STARTING else "waiting" if folder in _WAITING else "working"].append(
            item
        )
    begins: dict[Path, float] = {}
    for kind, found in kinds.items():
        share = 0.8 if kind == "starting" else 1.0
        for number, item in enumerate(found):
            begins.setdefault(item.path, share * number / len(found))
    return sorted(items, key=lambda item: (begins[item.path], item.path))


def write_groups(file: Path, items: Iterable[pytest.Item]) -> None:
    """Note which test uses which of the servers."""
    groups = {item.nodeid: name for item in items for name in SERVERS if _uses(item, name)}
    file.write_text(json.dumps(groups))


def _uses(item: pytest.Item, server: str) -> bool:
    if server == "private_server" and item.get_closest_marker("real_prefect"):
        return True  # by way of `prefect_server`
    return server in getattr(item, "fixturenames", ())


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """Gives tests that use the same server to one process, and all others to whoever has time."""

    def __init__(self, config: pytest.Config, log: Producer | None, groups: Path) -> None:
        super().__init__(config, log)
        self._file = groups
        self._groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:  # asked for when all processes have collected their tests
            self._groups = json.loads(self._file.read_text())
        return self._groups.get(nodeid, nodeid)
