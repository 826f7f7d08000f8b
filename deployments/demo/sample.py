"""Set up the demo: mailbox, the client's own database, the client, the workflow."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.cli import clients, files, workflows
from deployments.cli.postgres import PORT, EmbeddedPostgres
from deployments.cli.remote import Api
from deployments.demo import WORKFLOW_FILE
from deployments.demo.invoices import SENDER, invoice_mail, invoice_pdf
from deployments.demo.mail import MailServers

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

CLIENT = "idom"
MAILBOX = "invoices@idom.example"
DATABASE = "idom"
_TABLE = """
CREATE TABLE IF NOT EXISTS invoices (
    number text PRIMARY KEY,
    sender text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    currency text NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass
class Sample:
    """The sample client, with its mailbox and its database on running servers."""

    mail: MailServers
    postgres: EmbeddedPostgres
    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    """Password of mailbox and database; a new one at each start."""

    def set_up(self) -> None:
        """Create the mailbox and the client's database with its table; blocks."""
        self.mail.add_mailbox(MAILBOX, self.password)
        self.postgres.make_database(DATABASE)
        with _closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(_TABLE)

    def deliver_invoice(self, amount: float) -> str:
        """Deliver a mail with an invoice of `amount` euros and return the invoice's number."""
        number = f"INV-{datetime.now():%Y%m%d-%H%M%S}"
        self.mail.deliver(MAILBOX, invoice_mail(MAILBOX, pdf=invoice_pdf(number, amount), number=number))
        return number

    def register(self, api: Api, file: Path = WORKFLOW_FILE) -> dict[str, Any]:
        """Create or update the client, its credentials and the workflow; return the workflow."""
        clients.put_client(api, CLIENT, "IDOM Consulting")
        clients.put_credential(api, CLIENT, "email", "invoices", True, self.email_fields)
        clients.put_credential(api, CLIENT, "database", "invoices", True, self.database_fields)
        data = files.load(file)
        listed = api.pages("/workflows", "workflows", graphs="none")
        number = next((w["id"] for w in listed if w["name"] == data["name"]), None)
        existing = api.get(f"/workflows/{number}") if number is not None else None
        return workflows.apply_one(api, data, existing)[1]

    @property
    def email_fields(self) -> dict[str, Any]:
        """The client's email credentials."""
        return {
            "email_user": MAILBOX,
            "email_password": self.password,
            "imap_host": self.mail.host,
            "imap_port": self.mail.imap_port,
            "smtp_host": self.mail.host,
            "smtp_port": self.mail.smtp_port,
            "sender_whitelist": [SENDER],
        }

    @property
    def database_fields(self) -> dict[str, Any]:
        """The client's database credentials; the host is the folder of the server's Unix socket."""
        return {
            "db_host": str(self.postgres.socket_dir),
            "db_port": PORT,
            "db_name": DATABASE,
            "db_user": "postgres",
            "db_password": self.password,
        }

    def stored(self, number: str) -> tuple[Any, ...] | None:
        """Return an invoice's row in the client's database: number, sender, amount, currency; blocks."""
        with _closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT number, sender, amount, currency FROM invoices WHERE number = %s", (number,)
            )
            return cursor.fetchone()

    def _connect(self) -> Connection:
        import psycopg2

        return psycopg2.connect(self.postgres.url(DATABASE))


class _closing:  # noqa: N801
    """Closes a connection after one transaction; psycopg2's own `with` leaves it open."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Connection:
        self._connection.__enter__()
        return self._connection

    def __exit__(self, *error: Any) -> None:
        try:
            self._connection.__exit__(*error)
        finally:
            self._connection.close()
