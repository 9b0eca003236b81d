"""The laboratory: the experiments behind the claims, not needed to serve or to train."""
