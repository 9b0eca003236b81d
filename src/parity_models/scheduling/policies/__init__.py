"""Redundancy policies: what is sent besides the originals. One policy, one file."""

from parity_models.scheduling.policies.none import EqualResources, NoRedundancy
from parity_models.scheduling.policies.parity import AnswerRule, Parity, Pool
from parity_models.scheduling.policies.policy import Policy

__all__ = ["AnswerRule", "EqualResources", "NoRedundancy", "Parity", "Policy", "Pool"]
