"""The ledger: a process outside NOVA that every node tells when it starts and when it is done.

    python -m tests.chaos.ledger --port 7000 --file ledger.jsonl

It writes each entry down with the machine's time, which is PostgreSQL's too, before it says that it has it.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_NODE = """
import json, os, random, socket, time

def tell(what):
    entry = {{"what": what, "run_no": context["run_no"], "node": {node!r}, "key": run["idempotency_key"],
             "sandbox": os.environ["E2B_SANDBOX_ID"]}}
    with socket.create_connection(("127.0.0.1", {port}), 10) as line:
        line.sendall(json.dumps(entry).encode() + b"\\n")
        line.recv(1)

tell("started")
time.sleep(random.uniform({shortest}, {longest}))
context[{node!r}] = context["run_no"]
print(os.environ["E2B_SANDBOX_ID"])
tell("done")
"""


def node_code(node: str, port: int, seconds: tuple[float, float]) -> str:
    """Code of a node that leaves its mark in the ledger, in the context, and its sandbox's id in stdout."""
    return _NODE.format(node=node, port=port, shortest=seconds[0], longest=seconds[1])


@dataclass(frozen=True)
class Entry:
    """What a node told: that its code started, or was done."""

    at: float
    """Unix time."""
    what: str
    run_no: int
    """Number of the run, which stands in its initial context."""
    node: str
    key: str
    """The step's idempotency key."""
    sandbox: str


def read(file: Path) -> list[Entry]:
    """Read all entries, in the order in which they came."""
    if not file.exists():
        return []
    return [Entry(**json.loads(line)) for line in file.read_text().splitlines()]


class _Ledger(socketserver.ThreadingTCPServer):
    """One thread a connection, one entry a connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, file: Path) -> None:
        super().__init__(("127.0.0.1", port), _Line)
        self.lock = threading.Lock()
        self.file = file.open("a")


class _Line(socketserver.StreamRequestHandler):
    server: _Ledger

    def handle(self) -> None:
        """Write one entry down and confirm it."""
        told = self.rfile.readline()
        if not told.endswith(b"\n"):  # killed before it had said everything
            return
        with self.server.lock:
            self.server.file.write(json.dumps({"at": time.time(), **json.loads(told)}) + "\n")
            self.server.file.flush()
        self.wfile.write(b"+")


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ledger", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args()
    with _Ledger(options.port, options.file) as ledger:
        ledger.serve_forever()


if __name__ == "__main__":
    main()
