"""What acceptance tests need beside NOVA itself: real mail servers, and a client with a mailbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deployments.cli.remote import Api
from deployments.demo.mail import MailServers
from deployments.demo.sample import Sample
from tests.nova_up import NovaUp


@pytest.fixture
def nova(up: NovaUp) -> NovaUp:
    """A running NOVA, the same for all acceptance tests."""
    return up


@pytest.fixture(scope="session")
def mail() -> Iterator[MailServers]:
    """A real IMAP and a real SMTP server."""
    with MailServers() as servers:
        yield servers


class Idom:
    """The sample client with its mailbox, its own database and its invoice workflow."""

    def __init__(self, nova: NovaUp, mail: MailServers) -> None:
        self.nova = nova
        self.mail = mail
        self.sample = Sample(mail, nova.postgres)
        self.sample.set_up()
        with Api(nova.api_url) as api:
            self.workflow = self.sample.register(api)

    def run(self) -> dict[str, Any]:
        """Run the invoice workflow for this client and return the finished task."""
        return self.nova.finished(self.nova.execute(self.workflow, client_slug="idom"))


@pytest.fixture(scope="session")
def idom(up: NovaUp, mail: MailServers) -> Idom:
    """The sample client, set up as the demo does it."""
    return Idom(up, mail)
