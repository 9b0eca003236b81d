"""Race calls of any client with a gated stand-in, or with copies."""
