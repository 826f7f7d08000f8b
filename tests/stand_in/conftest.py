"""The two servers that the contract is held over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prefect.client.orchestration import PrefectClient

from tests.shared import SharedServers
from tests.stand_in.conversation import Conversation
from tests.stand_in.prefect import StandIn
from tests.stand_in.transport import client


@pytest.fixture
async def real(shared: SharedServers) -> AsyncIterator[Conversation]:
    """A conversation with a real server of Prefect's."""
    async with PrefectClient(shared.prefect_url()) as connected:
        yield Conversation(connected)


@pytest.fixture
async def stand_in() -> AsyncIterator[Conversation]:
    """A conversation with a stand-in of its own."""
    async with client(StandIn()) as connected:
        yield Conversation(connected)
