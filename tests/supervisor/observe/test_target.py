"""An operator's words for a group."""

import pytest

from supervisor.errors import UsageError
from supervisor.observe.control_socket import AllOfPipeline, Target, parse_target
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

P1 = PipelineId("p1")


@pytest.mark.parametrize("target", [AllOfPipeline(P1), EngineId(P1, 12), TrainerId(P1), GatewayId(P1)])
def test_what_a_group_is_called_names_it(target: Target) -> None:
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "P1", "p1/", "p1/engine", "p1/engine/x", "p1/engine/-1", "p1/trainer/0", "p1/motor/0", "../p1", "p1\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names nothing"):
        parse_target(text)
