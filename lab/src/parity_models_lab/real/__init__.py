"""Stand-ins of real models on real queries: how well each does, and what it costs."""
