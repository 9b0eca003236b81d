"""How units begin and end, and what becomes of the tasks of those that fail."""

from parity_models.scheduling.actions import DEPLOYED, Reason, Run
from parity_models.scheduling.health import Health, Poison
from parity_models.scheduling.scheduler_port import SchedulerPort
from parity_models.scheduling.work import Unit


class Units:
    """See above. Times in seconds. It tells the policy, admission and health of all units."""

    def __init__(self, port: SchedulerPort) -> None:
        self._port = port
        self._policy, self._config = port.policy, port.config
        self._dispatch, self._admission = port.dispatch, port.admission
        self.health = Health(port, port.dispatch, port.config)
        self.poison = Poison(port, port.policy, port.dispatch, port.config.max_attempts)

    def start(self) -> bool:
        """Give idle instances what they can run; was there anything?"""
        port = self._port
        started = False
        for instance, tasks in self._dispatch.assign(self._config.max_batch):
            started = True
            unit = port.begin(instance, tasks)
            if unit.is_original:
                self._admission.started(port.now)
            for task in tasks:
                task.unit = unit
                if task.comparing:
                    continue
                if task.role == DEPLOYED:
                    port.waiting.discard(task.subject)
                    port.tell((task.subject,), self._policy.starts, port, task)
                else:
                    port.tell((), self._policy.redundancy_starts, port, task)
            self.health.started(unit)
            subjects = tuple(task.subject for task in tasks)
            run = Run(instance, unit.id, tasks[0].role, subjects)
            port.actions += port.background.starts(unit, run) if unit.is_comparison else [run]
        return started

    def end(self, unit_id: int, *, finished: bool, rest: float = 0.0) -> Unit | None:
        """Take a unit off its instance, which then rests; None if there is nothing to be had of it:
        its instance had left before, or it was a golden query."""
        unit = self._port.end(unit_id)
        if unit is None:
            return None
        if unit.golden is not None:
            self.health.not_verified(unit, rest=rest)
            return None
        self.health.ended(unit, finished=finished, rest=rest)
        for task in unit.tasks:
            task.unit = None
        self._ended(unit, finished=finished)
        return unit

    def failed(self, unit: Unit, detail: str, *, turned_away: bool) -> None:
        """Its tasks are tried again, unless that has been done as often as it may."""
        port = self._port
        for task in reversed(unit.tasks):
            if not task.wanted:
                continue
            task.failed_on.append(unit.instance)
            task.turned_away += turned_away
            query = port.queries.get(task.subject) if task.role == DEPLOYED else None
            tries = len(task.failed_on)
            if tries - task.turned_away < self._config.max_attempts:
                # One that failed with different instances may fail whatever shares its batch.
                task.alone = task.alone or tries - task.turned_away > 1
                port.queue_again(task)
                if query is not None:
                    port.tell((query.id,), self._policy.urgent, port, query)
                continue
            task.wanted = False
            if query is not None and not any(copy.wanted for copy in query.tasks):
                tried = f"tried {tries} times; the last time: {detail}"
                port.fail(query, Reason.INSTANCES_FAILED, tried)

    def joined(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        """An instance is up, and idle."""
        if instance not in self._port.running:
            self._port.running[instance] = None
            self.health.joined(instance, roles, node)

    def left(self, instance: str) -> None:
        """An instance is gone, and its unit with it."""
        port = self._port
        if instance not in port.running:
            return
        unit = port.running.pop(instance)
        if unit is not None:
            del port.units[unit.id]
            for task in unit.tasks:
                task.unit = None
        self.health.left(instance)
        if unit is not None and unit.tasks:
            self._ended(unit, finished=False)
            if not unit.is_comparison:
                self.poison.lost(unit)

    def verified(self, unit_id: int, *, right: bool) -> None:
        """The golden query that is this unit has been answered rightly, or not."""
        unit = self._port.units.get(unit_id)
        if unit is not None and unit.golden is not None:
            self._port.end(unit_id)
            self.health.verified(unit, right=right)

    def _ended(self, unit: Unit, *, finished: bool) -> None:
        if unit.is_original:
            up = self._dispatch.up(DEPLOYED)
            self._admission.ended(self._port.now, unit, finished=finished, instances=up)
        if not unit.is_comparison:
            self._port.tell((), self._policy.unit_ended, self._port, unit, finished=finished)
