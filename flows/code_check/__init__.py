"""Whether a graph can be saved: the pure look at it, and its nodes' code compiled in child processes."""
