"""The documented defaults, as the scheduler and the health watch get them: tests change what they are about, and nothing else."""

from dataclasses import replace
from typing import Any

from engines.lifecycle.health import Rates
from supervisor.config.limits import limits, rates, rules
from supervisor.config.schema.tables import HealthTable, SchedulerTable
from supervisor.scheduler.spec import Limits, Rules


def default_limits(**changes: Any) -> Limits:
    return replace(limits(HealthTable()), **changes)


def default_rules(**changes: Any) -> Rules:
    return replace(rules(SchedulerTable()), **changes)


def default_rates(**changes: Any) -> Rates:
    return replace(rates(HealthTable()), **changes)
