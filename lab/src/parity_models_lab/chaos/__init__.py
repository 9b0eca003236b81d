"""Proof that the server can be trusted: chaos, overload, liars, soaks, all of them with ledgers."""
