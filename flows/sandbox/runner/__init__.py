"""The runner: it runs the nodes of one run, in an E2B sandbox or as a child process of the worker.

One process serves one run and reads messages from stdin. It holds the run's context and forks a clean child
for each node, which returns only the keys that it changed. It needs Python 3.8 or newer, uses only the
standard library and one thread (since it forks), and imports nothing outside this package: E2B gets it as one
zip.

In: chunks `<number> <size>\\n<bytes>`, whose bytes, joined, are the messages; a repeated chunk is ignored. A
message is one line of JSON and then raw bytes: `{"do": "load", "keys": [[name, size], …]}` with the values'
JSON texts, `{"do": "run", "call_id": …, "node_id": …, "kind": …, "code": …, "timeout": …}`, or
`{"do": "mark", "mark": …}`. The runner echoes the mark, so that a reader who lost output can go on there.
Out: lines of JSON in ASCII; an answer to `run` is followed by the JSON texts of the changed values. A
`call_id` that ran already gets the same answer and is not run again. When stdin ends, the node and the runner
end.
"""
