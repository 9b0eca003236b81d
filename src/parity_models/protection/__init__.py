"""From a model and its queries to the best stand-in: search, calibration, simulation, advice."""

from parity_models.protection.protect import Protected, protect_model
from parity_models.protection.wishes import Wishes
from parity_models.training.held_out import Queries

__all__ = ["Protected", "Queries", "Wishes", "protect_model"]
