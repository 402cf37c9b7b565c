"""The tables own the defaults, and what an operator sets reaches who acts on it."""

import dataclasses

import msgspec
import pytest

from engines.lifecycle.health import Rates
from supervisor.config.limits import limits, rates, rules
from supervisor.config.schema.tables import HealthTable, SchedulerTable
from supervisor.scheduler.spec import EngineSpec, Limits, Rules, TrainerSpec

BESIDE = {"watchdog_s"}
"""What no rule of the scheduler reads: the guardian does."""


@pytest.mark.parametrize("key", [field.name for field in msgspec.structs.fields(HealthTable) if field.name not in BESIDE])
def test_each_key_of_health_is_one_limit_or_rate(key: str) -> None:
    plain = HealthTable()
    other = msgspec.structs.replace(plain, **{key: getattr(plain, key) + 1})
    before = dataclasses.asdict(limits(plain)) | dataclasses.asdict(rates(plain))
    after = dataclasses.asdict(limits(other)) | dataclasses.asdict(rates(other))
    changed = [name for name, value in after.items() if before[name] != value]
    assert len(changed) == 1
    assert after[changed[0]] == getattr(other, key)


def test_the_scheduler_s_table_is_its_rules() -> None:
    assert dataclasses.astuple(rules(SchedulerTable())) == msgspec.structs.astuple(SchedulerTable())


@pytest.mark.parametrize("kind", [Rates, Rules, Limits, EngineSpec, TrainerSpec])
def test_who_acts_has_no_defaults_of_its_own_for_what_a_table_says(kind: type) -> None:
    own = {"order", "quiet_rollout", "ageing", "remeasure", "straggler", "gateway_start"}  # of `Limits`: no key sets them
    neutral = {"eager", "members", "processes"}
    without = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    assert {field.name for field in dataclasses.fields(kind)} - without <= own | neutral
