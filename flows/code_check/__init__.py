"""Check whether a graph can be saved: validate it, and compile its nodes' code in child processes."""
