"""One attempt of a run: its lease, its nodes, its sandbox, its end."""
