"""Erasure-coded resilience for prediction serving (Kosaian et al., SOSP 2019)."""

__version__ = "0.1.0"
