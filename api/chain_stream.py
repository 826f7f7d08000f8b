"""Writes the Chain of Work and contexts as JSON text, piece by piece.

Stored values are JSON text already: they are joined, never parsed. Rows are read page by page and values in
small groups, each in its own transaction, so that a slow client holds neither memory nor a connection.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain as flattened
from itertools import islice
from typing import Literal

from sqlalchemy.orm import Session

from api.responses import timestamp
from flows.credentials import vault
from flows.graphs.graph import Node, load_graph
from flows.graphs.json_values import dumps
from flows.graphs.lifecycle import StepStatus
from flows.store import chain, values, workflows
from flows.store.chain import Frame
from flows.store.database import Database
from flows.store.models import ChainEntry

Contexts = Literal["full", "changes", "none"]
"""What entries show: whole contexts before and after each node, only its changes, or neither."""

_PAGE = 20
"""Rows read at once; each may carry two outputs of 64 KB."""
_CHUNK = 64 * 1024
"""Bytes that are collected before they are sent."""
_CACHE = 16 * 1024 * 1024
"""Bytes of values that are kept in memory: most are the same in every context of a run."""
_GROUP_BYTES = 1024 * 1024
"""Bytes up to which groups of values grow."""


class _Values:
    """Values of one execution, as answers may show them; keeps those that were used last."""

    def __init__(self, database: Database, execution_id: int) -> None:
        self._database = database
        self._execution_id = execution_id
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._group = 4

    async def in_order(self, digests: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield the values of these digests, one by one."""
        at_hand: dict[str, bytes] = {}
        for place, digest in enumerate(digests):
            if digest in self._kept:
                self._kept.move_to_end(digest)
                yield self._kept[digest]
                continue
            if digest not in at_hand:
                at_hand = await self._load(islice(digests, place, None))
            yield at_hand[digest]

    def read_ahead(self, session: Session, digests: Iterable[str]) -> None:
        """Load the small ones of these values together, because they will be needed soon."""
        missing = (digest for digest in dict.fromkeys(digests) if digest not in self._kept)
        for digest, value in values.load_ahead(session, self._execution_id, missing, _GROUP_BYTES).items():
            self._keep(digest, vault.show(value))

    async def _load(self, digests: Iterable[str]) -> dict[str, bytes]:
        missing = dict.fromkeys(digest for digest in digests if digest not in self._kept)
        wanted = list(islice(missing, self._group))
        found = await self._database.run(lambda session: values.load(session, self._execution_id, wanted))
        texts = {digest: vault.show(value) for digest, value in found.items()}
        size = sum(map(len, texts.values()))
        self._group = min(self._group * 2, 256) if size < _GROUP_BYTES else max(self._group // 2, 1)
        for digest, text in texts.items():
            self._keep(digest, text)
        return texts

    def _keep(self, digest: str, text: bytes) -> None:
        if len(text) > _CACHE // 2:
            return
        self._kept[digest] = text
        self._kept_bytes += len(text)
        while self._kept_bytes > _CACHE:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)


class RunText:
    """One execution's contexts and chain as JSON text."""

    def __init__(self, database: Database, execution_id: int, version_id: int | None) -> None:
        self._database = database
        self._id = execution_id
        self._version_id = version_id
        self._values = _Values(database, execution_id)
        self._nodes: dict[str, Node] = {}

    async def context(self, digests: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Yield a context, given as key → digest, as one JSON object."""
        yield b"{"
        keys = iter(digests)
        comma = b""
        async for text in self._values.in_order(list(digests.values())):
            yield comma + dumps(next(keys)) + b":"
            yield text
            comma = b","
        yield b"}"

    def read_page(self, session: Session, skip: int, limit: int, contexts: Contexts) -> list[Frame]:
        """Return at most one page of the chain's rows, with their contexts if these are shown."""
        self._read_nodes(session)
        page = chain.entries(session, self._id, skip, min(limit, _PAGE))
        if contexts == "full":
            return self._prepared(session, list(chain.frames(session, self._id, page)), contexts)
        return self._prepared(session, _bare(page), contexts)

    def _read_on(self, session: Session, last: Frame, limit: int, contexts: Contexts) -> list[Frame]:
        """Return the page after a frame, whose contexts it continues."""
        page = chain.entries_after(session, self._id, last.entry, min(limit, _PAGE))
        if contexts == "full":
            return self._prepared(session, list(chain.frames_after(last, page)), contexts)
        return self._prepared(session, _bare(page), contexts)

    def _prepared(self, session: Session, page: list[Frame], contexts: Contexts) -> list[Frame]:
        """Load the small values that a page shows, and return the page."""
        if page and contexts != "none":
            changed = flattened.from_iterable(frame.entry.changes.values() for frame in page)
            self._values.read_ahead(session, [*page[0].before.values(), *changed])
        return page

    def _read_nodes(self, session: Session) -> None:
        """Read the run's graph, for the labels and the code of its nodes."""
        if self._version_id is not None and not self._nodes:
            graph = load_graph(workflows.version(session, self._version_id).graph)
            self._nodes = {node.id: node for node in graph.nodes}

    async def entries(self, first: list[Frame], limit: int, contexts: Contexts) -> AsyncIterator[bytes]:
        """Yield `limit` rows, as the inside of a JSON list; `first` is their first page."""
        page, comma = first, b""
        while page:
            for frame in page:
                yield comma
                async for text in self._entry(frame, contexts):
                    yield text
                comma = b","
            if len(page) < min(limit, _PAGE):
                return
            limit -= len(page)
            if limit < 1:
                return
            page = await self._database.run(
                partial(self._read_on, last=page[-1], limit=limit, contexts=contexts)
            )

    async def _entry(self, frame: Frame, contexts: Contexts) -> AsyncIterator[bytes]:
        """Yield one row, with the contract's fields first and in the contract's order."""
        entry = frame.entry
        node = self._nodes.get(entry.node_id)
        head = {
            "id": entry.id,
            "execution_id": entry.execution_id,
            "node_id": entry.node_id,
            "node_type": entry.node_type,
            "code_executed": _program(node),
        }
        yield dumps(head)[:-1] + b',"input_context":'
        async for text in self._context_or_null(frame.before if contexts == "full" else None):
            yield text
        yield b',"output_result":'
        async for text in self._context_or_null(_output(frame, contexts)):
            yield text
        yield b"," + dumps(_tail(entry, node))[1:]

    async def _context_or_null(self, digests: Mapping[str, str] | None) -> AsyncIterator[bytes]:
        if digests is None:
            yield b"null"
            return
        async for text in self.context(digests):
            yield text


def _bare(page: list[ChainEntry]) -> list[Frame]:
    """Return frames without contexts, for rows that show none."""
    return [Frame(entry, {}, {}) for entry in page]


def _program(node: Node | None) -> str | None:
    return (node.code or node.condition) if node and node.type in ("action", "decision") else None


def _output(frame: Frame, contexts: Contexts) -> Mapping[str, str] | None:
    if contexts == "none" or frame.entry.status != StepStatus.SUCCESS:
        return None
    return frame.after if contexts == "full" else frame.entry.changes


def _tail(entry: ChainEntry, node: Node | None) -> dict[str, object]:
    return {
        "execution_time": entry.execution_time,
        "status": entry.status,
        "error_message": entry.error_message,
        "decision_result": entry.decision_result,
        "path_taken": entry.path_taken,
        "timestamp": timestamp(entry.timestamp),
        "step": entry.step,
        "attempt": entry.attempt,
        "label": node.label if node else None,
        "stdout": entry.stdout,
        "stderr": entry.stderr,
        "error_type": entry.error_type,
        "traceback": entry.traceback,
    }


async def gathered(texts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same text in pieces of at least 64 KiB, but for the last."""
    waiting: list[bytes] = []
    size = 0
    async for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
