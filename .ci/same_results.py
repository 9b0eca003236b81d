"""Simulate policies, and print a digest of what became of every query, and the time it took.

Run by the Python of an installation: the compiled package says what the pure one does.
"""

import hashlib
import sys
import time

from parity_models.faults import LogNormal
from parity_models.scheduling import scheduler
from parity_models.scheduling.choice import PolicyChoice
from parity_models.simulation.setting import Setting
from parity_models.simulation.trial import Emulation, Mode, Trial, simulate_trial

BACKUP = {"stand_ins": ("backup",), "backup_service": LogNormal(0.005, 0.05), "coverage": 0.9}
POLICIES = ("equal-resources", "replication", "hedging", "approximate-backup", "parity")
RULES = ("single-queue", "round-robin", "two-choices", "latency-aware")

QUERIES = 2_000
MANY = 667
"""Deployed instances, of 1,000 in all, where time is measured."""


def trial(policy: PolicyChoice, queries: int, seed: int, drawn: bool, **setting: object) -> Trial:
    return Trial(
        mode=Mode.SIMULATED,
        setting=Setting(**setting),
        policy=policy,
        queries=queries,
        warm_up=200,
        seed=seed,
        network=Emulation.EVERYTHING if drawn else Emulation.NOTHING,
    )


def trials(seed: int) -> dict[str, Trial]:
    drawn, both = seed % 2 == 0, {"coverage": 0.9, "stand_ins": ("backup", "parity")}
    found = {name: trial(PolicyChoice(name), QUERIES, seed, drawn) for name in POLICIES}
    for load in (0.5, 0.9, 1.1):
        for name, stand_ins in {"parity": {}, "backup": BACKUP, "both": both}.items():
            choice = PolicyChoice("adaptive")
            found[f"adaptive, {name}, {load}"] = trial(
                choice, QUERIES, seed, drawn, load=load, **stand_ins
            )
    for rule in RULES:
        choice = PolicyChoice("adaptive", dispatch=rule)
        found[rule] = trial(choice, QUERIES, seed, drawn, load=0.7, **BACKUP)
    for name, setting in {
        "nodes": {"k": 4, "instances": 14, "nodes": 3, "pause_every": 3.0},
        "kills": {"kill_every": 1.0, "cold_factor": 3.0},
        "batches": {"max_batch": 4, "load": 0.8},
        "bursts": {"burst": 3.0, "burst_every": 4.0, "burst_length": 1.0},
    }.items():
        found[name] = trial(PolicyChoice("adaptive"), QUERIES, seed, drawn, **setting)
    return found


def main(seed: int) -> None:
    kind = "pure" if scheduler.__file__.endswith(".py") else "compiled"
    for name, each in trials(seed).items():
        result = simulate_trial(each)
        print(f"{hashlib.sha256(repr(result).encode()).hexdigest()[:16]} {name}")
    setting = {"instances": MANY, "shuffles": MANY // 3}
    large = trial(PolicyChoice("adaptive"), 20_000, seed, False, **setting)
    began = time.process_time()
    result = simulate_trial(large)
    took = time.process_time() - began
    print(f"{hashlib.sha256(repr(result).encode()).hexdigest()[:16]} a thousand instances")
    print(f"{kind}: {took / 20_200 * 1e6:.1f} us a query, 1,000 instances", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
