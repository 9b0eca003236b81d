"""Accuracy of answers when some of the predictions are unavailable, and calibration of bundles."""
