"""The pure part of NOVA: graphs, their traversal, contexts and errors; no I/O."""
