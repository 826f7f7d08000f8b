"""A wire that a test can cut: a TCP port that passes bytes on to a server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from types import TracebackType
from typing import Self

Target = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


class Relay:
    """Listens on a port of the system and passes everything on, until it is told otherwise."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.sent = bytearray()
        """All that the clients sent."""
        self.deaf = False
        """What the client sends arrives, what the server answers gets lost."""
        self.deaf_after = b""
        """It goes deaf when a client sends this."""
        self.refused = ""
        """Requests whose first line begins with this do not arrive: their connection is dropped."""
        self.held = ""
        """Requests whose first line begins with this wait on their way until `through` is set."""
        self.through = asyncio.Event()
        self.open = asyncio.Event()
        """Answers pass while it is set; until then they wait."""
        self.open.set()

    def requests(self, prefix: str) -> list[str]:
        """The HTTP requests that were sent, each with its body, whose first line begins with `prefix`."""
        heads = re.split(rb"(?=(?:GET|POST|PUT|PATCH|DELETE) /\S* HTTP/1\.1\r\n)", bytes(self.sent))
        return [text for text in (head.decode() for head in heads) if text.startswith(prefix)]

    async def restore(self) -> None:
        """Listen (again, on the same port)."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Drop all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there: asyncio.StreamWriter | None = None
        try:
            if isinstance(self._target, str):
                back, there = await asyncio.open_unix_connection(self._target)
            else:
                back, there = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pass(reader, there, False), self._pass(back, writer, True))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool
    ) -> None:
        while data := await reader.read(65536):
            if is_answer:
                await self.open.wait()
            else:
                if self.refused and data.startswith(self.refused.encode()):
                    raise ConnectionResetError
                self.sent += data
                if self.held and data.startswith(self.held.encode()):
                    await self.through.wait()
                self.deaf = self.deaf or bool(self.deaf_after and self.deaf_after in data)
            if not (is_answer and self.deaf):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
