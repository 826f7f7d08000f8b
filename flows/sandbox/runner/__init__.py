"""Runs the nodes of one run: the same code inside an E2B sandbox and as a child process of the worker.

One process per run, fed through stdin. It holds the run's context and forks a clean child per node, which
sends back only the keys that it changed. Standard library alone, Python 3.8 or newer, one thread (it forks),
no imports from outside this package: it goes into E2B as one zip.

In: chunks `<number> <size>\\n<bytes>`, whose bytes, joined, are the messages; a chunk that comes twice is
taken once. A message is one line of JSON and then raw bytes: `{"do": "load", "keys": [[name, size], …]}` with
the values' JSON texts, `{"do": "run", "call_id": …, "node_id": …, "kind": …, "code": …, "timeout": …}`, or
`{"do": "mark", "mark": …}`, which is echoed so that a reader who lost output finds its way again.
Out: lines of JSON in ASCII, an answer to `run` followed by the texts of the changed values. A `call_id`
that ran already is answered again, never run again. The end of stdin ends everything.
"""
