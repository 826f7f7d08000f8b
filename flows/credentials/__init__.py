"""Clients' credentials: stored encrypted, decrypted only for the sandbox."""
