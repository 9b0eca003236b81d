"""Metrics of predictions, and labels to judge them by."""

from parity_models.tasks.metrics import METRICS, agreement, score

__all__ = ["METRICS", "agreement", "score"]
