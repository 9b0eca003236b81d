"""How many replicas a deployment of instances should have."""

from typing import Any


class Utilisation:
    """Serve's autoscaling policy for instances: as many as are busy for a share `target` of the
    time.

    Units do not go through Serve's handles, so that Serve does not see them; instances report for
    which share of the time they had one, as `utilisation`.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """How many replicas there should be, before Serve's delays and bounds; no state is kept."""
        used = context.aggregated_metrics.get("utilisation")
        if not used:
            return context.target_num_replicas, {}
        mean = sum(used.values()) / len(used)
        return context.current_num_replicas * mean / self._target, {}
