"""Real mail servers for the demo and the tests: IMAP by pymap, SMTP by aiosmtpd, mailboxes in memory."""

from __future__ import annotations

import asyncio
import email
import email.policy
import logging
import secrets
import socket
import threading
import warnings
from argparse import Namespace
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.message import EmailMessage
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_PATIENCE = 10.0
"""Seconds that one operation of the servers may take."""


class MailServers:
    """An IMAP and an SMTP server on free ports of 127.0.0.1; use it as a context manager.

    They run in a thread with its own event loop, so that synchronous and asynchronous tests can use them.
    SMTP needs the same user and password as IMAP. Neither offers TLS.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.imap_port = 0
        self.smtp_port = 0
        self.sent: list[EmailMessage] = []
        """Mails that were sent over SMTP, oldest first; the envelope's recipients and sender are in
        `X-Envelope-To` and `X-Envelope-From`."""
        self._passwords: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mail servers", daemon=True)
        self._stack = AsyncExitStack()
        self._login: Any = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._open())
        except BaseException:
            self._stop_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._close())
        finally:
            self._stop_loop()

    def add_mailbox(self, user: str, password: str) -> None:
        """Create an empty mailbox, or change the password of an existing one."""
        self._passwords[user] = password
        self._call(self._add_user(user, password))

    def deliver(self, user: str, message: EmailMessage) -> None:
        """Add an unread mail to a mailbox's INBOX; raises KeyError if there is no such mailbox."""
        if user not in self._passwords:
            raise KeyError(user)
        self._call(self._append(user, message))

    def unread(self, user: str) -> int:
        """Return the number of unread mails in a mailbox's INBOX."""
        import imaplib

        with imaplib.IMAP4(self.host, self.imap_port, timeout=_PATIENCE) as mailbox:
            mailbox.login(user, self._passwords[user])
            mailbox.select(readonly=True)
            _, found = mailbox.search(None, "UNSEEN")
            return len(found[0].split())

    # -- the loop's thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    async def _open(self) -> None:
        await self._open_imap()
        await self._open_smtp()

    async def _close(self) -> None:
        await self._stack.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    async def _open_imap(self) -> None:
        from proxyprotocol.reader import ProxyProtocolReader
        from pymap.backend.dict import Config, Login
        from pymap.imap import IMAPServer

        arguments = Namespace(
            host=self.host, port=0, debug=False, cert=None, key=None, tls=False, proxy_protocol=None,
            passlib_cfg=None, demo_data=False, demo_user="", demo_password=secrets.token_hex(),
        )  # fmt: skip
        config = Config.from_args(arguments, invalid_user_sleep=0.0)
        config.apply_context()
        self._login = Login(config)
        callback = ProxyProtocolReader(config.proxy_protocol).get_callback(IMAPServer(self._login, config))
        server = await asyncio.start_server(callback, host=self.host, port=0)
        self._stack.push_async_callback(_close_server, server)
        self.imap_port = _port_of(server)

    async def _open_smtp(self) -> None:
        from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

        def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> Any:
            if not isinstance(data, LoginPassword):
                return AuthResult(success=False, handled=False)
            known = self._passwords.get(data.login.decode(errors="replace"))
            good = known is not None and known.encode() == data.password
            return AuthResult(success=good, handled=False)

        def protocol() -> SMTP:
            with (
                warnings.catch_warnings()
            ):  # aiosmtpd warns of passwords without TLS; here they stay on this machine
                warnings.simplefilter("ignore")
                return SMTP(
                    _Outbox(self.sent),
                    hostname="localhost",
                    authenticator=check,
                    auth_required=True,
                    auth_require_tls=False,
                    enable_SMTPUTF8=True,
                )

        logging.getLogger("mail.log").setLevel(logging.ERROR)  # it repeats that warning for each connection

        server = await self._loop.create_server(protocol, host=self.host, port=0)
        self._stack.push_async_callback(_close_server, server)
        self.smtp_port = _port_of(server)

    async def _add_user(self, user: str, password: str) -> None:
        from pymap.backend.dict import Identity
        from pymap.user import Passwords, UserMetadata

        hashed = await Passwords(self._login.config).hash_password(password)
        identity = Identity(user, self._login, None, {"admin"})
        await identity.set(UserMetadata(self._login.config, user, password=hashed))

    async def _append(self, user: str, message: EmailMessage) -> None:
        from pymap.backend.dict import Identity
        from pymap.parsing.message import AppendMessage

        async with Identity(user, self._login, None, frozenset()).new_session() as session:
            inbox = await session.mailbox_set.get_mailbox("INBOX")
            data = message.as_bytes(policy=email.policy.SMTP)
            await inbox.append(AppendMessage(data, datetime.now(UTC), frozenset()), recent=True)


class _Outbox:
    """Keeps the mails that SMTP clients send."""

    def __init__(self, sent: list[EmailMessage]) -> None:
        self._sent = sent

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        """Keep one mail; aiosmtpd calls this."""
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        message["X-Envelope-From"] = envelope.mail_from
        message["X-Envelope-To"] = ", ".join(envelope.rcpt_tos)
        self._sent.append(message)
        return "250 OK"


async def _close_server(server: asyncio.Server) -> None:
    server.close()


def _port_of(server: asyncio.Server) -> int:
    listener: socket.socket = server.sockets[0]
    return int(listener.getsockname()[1])
