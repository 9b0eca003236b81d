"""How long the answers of other servers may be."""

JSON_VALUE = 32
"""Bytes that a number may take in an answer, with what stands around it."""

MAX_HEAD = 2**16
"""Bytes that an answer may have beside its numbers."""
