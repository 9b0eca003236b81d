"""Metrics of predictions, and labels to judge them by."""
