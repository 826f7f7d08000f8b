"""The invoice workflow in all its shapes: real mail, real PDFs, the client's own database, real answers."""

from __future__ import annotations

from typing import Any

from deployments.cli import clients
from deployments.cli.remote import Api
from deployments.demo.invoices import BROKEN_PDF, invoice_mail, invoice_pdf
from deployments.demo.sample import MAILBOX
from tests.acceptance.conftest import Idom


def path(idom: Idom, task: dict[str, Any]) -> list[str]:
    """Return the ids of the nodes that ran."""
    return [entry["node_id"] for entry in idom.nova.chain(task, "none")]


def test_no_mail(idom: Idom) -> None:
    """An empty mailbox: the run succeeds and ends at once."""
    task = idom.run()
    assert task["status"] == "SUCCESS", task
    assert path(idom, task) == ["start", "read_mail", "has_mail", "end_no_mail"]


def test_mail_without_a_pdf(idom: Idom) -> None:
    """A mail without a PDF is answered with the request for one."""
    idom.mail.deliver(MAILBOX, invoice_mail(MAILBOX, pdf=None, number="INV-1"))
    task = idom.run()
    assert task["status"] == "SUCCESS", task
    assert path(idom, task)[-2:] == ["reply_no_pdf", "end_asked"]
    assert idom.mail.sent[-1]["Subject"] == "Re: Invoice INV-1"


def test_low_amount(idom: Idom) -> None:
    """A small invoice is written to the client's own database."""
    idom.mail.deliver(
        MAILBOX, invoice_mail(MAILBOX, pdf=invoice_pdf("INV-2026-77", 845.5), number="INV-2026-77")
    )
    task = idom.run()
    assert task["status"] == "SUCCESS", task
    assert path(idom, task)[-2:] == ["store_invoice", "end_stored"]
    assert task["result"]["final_context"]["amount"] == 845.5
    stored = idom.sample.stored("INV-2026-77")
    assert stored is not None
    assert [str(value) for value in stored[:3]] == ["INV-2026-77", "billing@acme.example", "845.50"]


def test_high_amount(idom: Idom) -> None:
    """A large invoice is not stored: its approval is asked for by mail."""
    idom.mail.deliver(MAILBOX, invoice_mail(MAILBOX, pdf=invoice_pdf("INV-2026-78", 12_500), number="78"))
    task = idom.run()
    assert task["status"] == "SUCCESS", task
    assert path(idom, task)[-2:] == ["ask_approval", "end_asked"]
    assert idom.mail.sent[-1]["Subject"] == "Approval needed: invoice INV-2026-78"
    assert idom.sample.stored("INV-2026-78") is None


def test_broken_pdf(idom: Idom) -> None:
    """A PDF that cannot be read fails the node that reads it, with a sentence a person understands."""
    idom.mail.deliver(MAILBOX, invoice_mail(MAILBOX, pdf=BROKEN_PDF, number="INV-3"))
    task = idom.run()
    assert task["status"] == "FAILURE", task
    assert task["failed_at_node"] == "extract"
    assert "INV-3.pdf is not a readable PDF" in task["error"]
    assert idom.nova.chain(task)[-1]["status"] == "failed"


def test_wrong_mailbox_password(idom: Idom) -> None:
    """A wrong password is a clear failure that does not contain it, and neither does anything stored."""
    wrong = "wrong-Passw0rd"
    with Api(idom.nova.api_url) as api:
        fields = {**idom.sample.email_fields, "email_password": wrong}
        clients.put_credential(api, "idom", "email", "invoices", True, fields)
        try:
            task = idom.run()
        finally:
            clients.put_credential(api, "idom", "email", "invoices", True, idom.sample.email_fields)
    assert task["status"] == "FAILURE", task
    assert task["failed_at_node"] == "read_mail"
    assert "refused the login" in task["error"]
    answers = idom.nova.http.get(f"/executions/{task['execution_id']}/chain").text + str(task)
    assert wrong not in answers
