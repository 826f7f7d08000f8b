"""The demo's mail servers and invoices are real enough for a mail program."""

from __future__ import annotations

import imaplib
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage

import pymupdf
import pytest

from deployments.demo.invoices import BROKEN_PDF, invoice_mail, invoice_pdf
from deployments.demo.mail import MailServers

USER = "invoices@idom.example"
PASSWORD = 'pass "word" \\ 1'


@pytest.fixture
def mail() -> Iterator[MailServers]:
    """Mail servers with one mailbox."""
    with MailServers() as servers:
        servers.add_mailbox(USER, PASSWORD)
        yield servers


def test_a_delivered_mail_is_read_over_imap(mail: MailServers) -> None:
    """It arrives unread, with its attachment as it was."""
    pdf = invoice_pdf("INV-7", 12.5)
    mail.deliver(USER, invoice_mail(USER, pdf=pdf, number="INV-7"))
    assert mail.unread(USER) == 1
    with imaplib.IMAP4(mail.host, mail.imap_port, timeout=10) as client:
        client.login(USER, PASSWORD)
        client.select()
        client.store("1", "+FLAGS", "\\Seen")
    assert mail.unread(USER) == 0


def test_a_wrong_password_is_refused(mail: MailServers) -> None:
    """By both servers."""
    with imaplib.IMAP4(mail.host, mail.imap_port, timeout=10) as client, pytest.raises(imaplib.IMAP4.error):
        client.login(USER, "wrong")
    with (
        smtplib.SMTP(mail.host, mail.smtp_port, timeout=10) as server,
        pytest.raises(smtplib.SMTPAuthenticationError),
    ):
        server.login(USER, "wrong")


def test_a_mail_handed_in_over_smtp_is_kept(mail: MailServers) -> None:
    """With what the envelope said; without a login it is refused."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = USER, "acme@acme.example", "Größe"
    message.set_content("text")
    with smtplib.SMTP(mail.host, mail.smtp_port, timeout=10) as server:
        with pytest.raises(smtplib.SMTPException):
            server.send_message(message)
        server.login(USER, PASSWORD)
        server.send_message(message)
    assert mail.sent[0]["Subject"] == "Größe"
    assert mail.sent[0]["X-Envelope-To"] == "acme@acme.example"


def test_servers_stand_side_by_side_and_end(mail: MailServers) -> None:
    """Each has ports and mailboxes of its own; a closed one does not answer."""
    with MailServers() as second:
        assert second.imap_port != mail.imap_port
        with pytest.raises(KeyError):
            second.deliver(USER, EmailMessage())
    with pytest.raises(OSError, match="refused"):
        imaplib.IMAP4(second.host, second.imap_port, timeout=10)


def test_the_sample_invoice_is_a_pdf_with_its_text() -> None:
    """Number and total can be read from it; the broken one cannot be opened."""
    with pymupdf.open(stream=invoice_pdf("INV-8", 1234.5), filetype="pdf") as document:
        text = document[0].get_text()
    assert "Invoice INV-8" in text
    assert "Total: 1,234.50 EUR" in text
    with pytest.raises(pymupdf.FileDataError):
        pymupdf.open(stream=BROKEN_PDF, filetype="pdf")
