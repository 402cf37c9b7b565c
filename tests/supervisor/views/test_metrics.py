"""The page of `/metrics` has what a trainer reports, and every metric that the Grafana dashboard of the examples draws."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from supervisor.observe.status import GpuView, Status
from supervisor.views.metrics import Metrics
from tests.harness.scheduler_bench import serving
from trainers.protocol import trainer_messages as say

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
STATUS = Status(
    run="r", started_at=0.0, uptime_s=1.0, gpus=(GpuView(id=0, name="GPU", holder="a/engine/0", priority="rollout", used_bytes=1),)
)


def page() -> str:
    bench = serving()
    bench.say("a", say.Report(step=7, metrics={"reward": 0.5, "loss": -0.25, "kl/mean": 0.01}))
    return Metrics().page(bench.scheduler, STATUS, 0.0).decode()


def test_what_a_trainer_reports_is_there() -> None:
    samples = [sample for family in text_string_to_metric_families(page()) for sample in family.samples]
    reported = {sample.labels["name"]: sample.value for sample in samples if sample.name == "trainshed_reported"}
    assert reported == {"reward": 0.5, "loss": -0.25, "kl/mean": 0.01}
    assert [sample.value for sample in samples if sample.name == "trainshed_step"] == [7.0]


def test_the_dashboard_draws_only_what_there_is() -> None:
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    drawn = {name for panel in dashboard["panels"] for target in panel["targets"] for name in re.findall(r"trainshed_\w+", target["expr"])}
    families = {line.split()[2] for line in page().splitlines() if line.startswith("# TYPE ")}
    assert len(drawn) > 10
    assert {name for name in drawn if name.removesuffix("_bucket") not in families} == set()
