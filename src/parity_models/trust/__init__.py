"""When to trust a stand-in: may this output answer (`gates`), does it still agree (`agreement`)."""
