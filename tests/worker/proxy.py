"""Ways to Prefect's server that let not everything through."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """A TCP proxy before Prefect's API; `api_url` is where it is reached once it is entered."""

    def __init__(self, api_url: str) -> None:
        self._target = urlsplit(api_url)
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.api_url = ""

    def refuses(self, head: bytes) -> bool:
        """Whether a connection that begins with this line is closed at once."""
        return False

    async def passes(self, data: bytes) -> None:
        """Return when these bytes of a client may go on to the server."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.api_url = f"http://127.0.0.1:{port}{self._target.path}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._link(reader, writer))
        self._links.add(task)
        task.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n")
            if self.refuses(head):
                return
            back, forth = await asyncio.open_connection(self._target.hostname, self._target.port)
            with contextlib.closing(forth):
                forth.write(head)
                ways = {
                    asyncio.create_task(self._forth(reader, forth)),
                    asyncio.create_task(_pump(back, writer)),
                }
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.passes(data)
                writer.write(data)
                await writer.drain()


class NoEvents(Proxy):
    """Lets no event stream through."""

    def refuses(self, head: bytes) -> bool:
        """Close the connections that ask for events."""
        return b"/events/out" in head


class HeldProposals(Proxy):
    """Holds proposals of one type of state, as RUNNING, while `hold` was called and `release` was not."""

    def __init__(self, api_url: str, kind: str) -> None:
        super().__init__(api_url)
        self._kind = f'"{kind}"'.encode()
        self._open = asyncio.Event()
        self._open.set()
        self.held = asyncio.Event()
        """Set once a proposal is held."""

    def hold(self) -> None:
        """Let no run come to that state."""
        self._open.clear()

    def release(self) -> None:
        """Let all go on."""
        self._open.set()

    async def passes(self, data: bytes) -> None:
        """Wait where these bytes propose it."""
        if self._kind in data and not self._open.is_set():
            self.held.set()
            await self._open.wait()


class LostProposals(Proxy):
    """Drops the connection of each proposal of one type of state, as FAILED, while `loses` is set."""

    def __init__(self, api_url: str, kind: str) -> None:
        super().__init__(api_url)
        self._kind = f'"{kind}"'.encode()
        self.loses = True

    async def passes(self, data: bytes) -> None:
        """Raise ConnectionResetError where these bytes propose it."""
        if self.loses and self._kind in data:
            raise ConnectionResetError


class LostAnswers(Proxy):
    """Drops the connection of the next proposal of one type of state when Prefect has it, unanswered."""

    def __init__(self, api_url: str, kind: str) -> None:
        super().__init__(api_url)
        self._kind = f'"{kind}"'.encode()
        self.lost = 0
        """How many answers were lost."""

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
                if self._kind in data and not self.lost:
                    self.lost += 1
                    return


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
