"""The ledger: a process outside NOVA to which every node reports its start and its end.

    python -m tests.chaos.ledger --port 7000 --file ledger.jsonl

It writes each entry to a file before it confirms it. Times are this machine's, as PostgreSQL's are.
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

def report(what):
    entry = {{"what": what, "run_no": context["run_no"], "node": {node!r}, "key": run["idempotency_key"],
             "sandbox": os.environ["E2B_SANDBOX_ID"]}}
    with socket.create_connection(("127.0.0.1", {port}), 10) as line:
        line.sendall(json.dumps(entry).encode() + b"\\n")
        line.recv(1)

report("started")
time.sleep(random.uniform({shortest}, {longest}))
context[{node!r}] = context["run_no"]
print(os.environ["E2B_SANDBOX_ID"])
report("done")
"""


def node_code(node: str, port: int, seconds: tuple[float, float]) -> str:
    """Return the code of a node that reports to the ledger, sets its key and prints its sandbox's id."""
    return _NODE.format(node=node, port=port, shortest=seconds[0], longest=seconds[1])


@dataclass(frozen=True)
class Entry:
    """A node's report: its code started, or ended."""

    at: float
    """Unix time."""
    what: str
    run_no: int
    """Number of the run, from its initial context."""
    node: str
    key: str
    """The step's idempotency key."""
    sandbox: str


def read(file: Path) -> list[Entry]:
    """Return all entries, oldest first."""
    if not file.exists():
        return []
    return [Entry(**json.loads(line)) for line in file.read_text().splitlines()]


class _Ledger(socketserver.ThreadingTCPServer):
    """A server with one thread and one entry per connection."""

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
        """Write one entry to the file and confirm it."""
        line = self.rfile.readline()
        if not line.endswith(b"\n"):  # the node was killed while it wrote
            return
        with self.server.lock:
            self.server.file.write(json.dumps({"at": time.time(), **json.loads(line)}) + "\n")
            self.server.file.flush()
        self.wfile.write(b"+")


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ledger", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args()
    with _Ledger(options.port, options.file) as ledger:
        ledger.serve_forever()


if __name__ == "__main__":
    main()
