"""Metrics of predictions, and labels to judge them by."""

from parity_models.tasks.metrics import METRICS, agreement, check_labels, score

__all__ = ["METRICS", "agreement", "check_labels", "score"]
