"""How NOVA is run: the command line, the worker, the files of a deployment."""
