"""Measurements: load on a fixed schedule, latency summaries and pictures, costs of the parts."""
