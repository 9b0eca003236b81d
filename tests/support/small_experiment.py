"""Experiment files whose trials take seconds, and bundles for them that are trained briefly."""

from pathlib import Path

from parity_models.training import TrainingOptions
from parity_models_lab.latency.experiment import load_experiment
from parity_models_lab.latency.real_trial import Laboratory
from parity_models_lab.latency.reproduce_latency import PRESETS, Plan
from parity_models_lab.latency.trial import Emulation

SMALL = """
title = "Small"
axis = "rate"
points = [{ rate = 300 }]
real_queries = 100
warm_up = 50
[setting]
instances = 2
shuffles = 1
service = { type = "constant", seconds = 0.002 }
delay = { type = "constant", seconds = 0.01 }
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "parity, shared pool"
policy = { name = "parity", max_group_wait = 0.005 }
"""

SIMULATED = """
title = "Small"
axis = "load"
points = [{ load = 0.3 }, { load = 0.6 }]
simulated_queries = 1000
warm_up = 100
[setting]
instances = 4
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "adaptive parity"
policy = { name = "adaptive" }
"""
"""Simulated: a thousand queries at each point."""


def brief(work: Path) -> Laboratory:
    """The laboratory of a folder for work, whose bundles take a second to train."""
    return Laboratory(work / "bundles", training=TrainingOptions(epochs=6))


def train_briefly(work: Path, figure: Path) -> None:
    """Train all that an experiment file needs, so that its command need not train for longer."""
    plan = Plan("", load_experiment(str(figure)), PRESETS["quick"], 0, Emulation.NOTHING)
    laboratory = brief(work)
    for trial in plan.all_trials():
        laboratory.bundle_for(trial)
