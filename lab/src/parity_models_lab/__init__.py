"""The laboratory: what proves the claims, and nobody needs to serve or to train."""
