"""The faces of a history: the trace and the page say what the fold says, need nothing from outside, and run nothing that a child has written."""

import json
import re
import shutil
import subprocess
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from supervisor.attempt.history import read_history
from supervisor.cli.main import main
from supervisor.history import totals
from supervisor.history.facts import BoxIs, Demand, EnginesOf, GpuLent, Noted, Party, PipelineOf, Reported, TrainerIs, Waits
from supervisor.history.fold import History
from supervisor.history.lanes import Doing, Lane
from supervisor.views.history.page import data_json, page
from supervisor.views.history.page_data import HIDDEN, page_data
from supervisor.views.history.thinning import thinned, width_for
from supervisor.views.history.trace import GPUS, trace
from tests.harness.boxes import BOXES
from tests.harness.recorded_runs import EPOCH, record

LATER = EPOCH + 1e6
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><!--\u2028\x1b[31m"


def test_the_trace_has_a_track_for_each_gpu_that_adds_up(tmp_path: Path) -> None:
    record(tmp_path)
    history = read_history(tmp_path, LATER)
    told = json.loads(trace(history, "run"))
    events = told["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} == {
        *(f"GPU {gpu}" for gpu in history.gpus),
        *history.pipelines,
    }
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    for (process, thread), slices in tracks.items():
        for one, other in pairwise(slices):
            assert one["ts"] + one["dur"] <= other["ts"]
        if process == GPUS:
            idle = totals.split(history.gpus[thread - 1], history.until).by_kind.get("free", 0.0)
            assert sum(one["dur"] for one in slices) / 1e6 + idle == pytest.approx(history.until, abs=1e-3)
    assert any(event["ph"] == "C" and event["name"].endswith("samples") for event in events)
    assert any("args" in event and "why" in event["args"] for event in events if event.get("cat") == "lease")


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    record(tmp_path, box=BOXES["crowded"])
    text = page(page_data(read_history(tmp_path, LATER), run="run", directory=str(tmp_path))).decode()
    assert re.findall(r"\b(?:src|href)\s*=", text) == []
    assert set(re.findall(r"\w+://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}  # the name of a language, fetched by nobody
    assert "@@" not in text
    assert "default-src 'none'" in text


def test_splits_of_the_page_sum_up(tmp_path: Path) -> None:
    record(tmp_path)
    data = page_data(read_history(tmp_path, LATER), run="run", directory="")
    for split in data.gpu_splits:
        assert sum(split.seconds.values()) == pytest.approx(data.seconds, abs=0.01)
    for lane in (*data.gpus, *data.lanes):
        assert sum(lane.steps) / 1000 <= data.seconds
        assert all(0 <= doing < len(data.doings) for doing in lane.doings)
    assert {lane.name for lane in data.lanes} == {"a", "b", "c"}


def hostile() -> History:
    """A history whose every text was written by somebody who wants a script to run."""
    history = History()
    history.opened(0.0, EPOCH, life=True)
    of = PipelineOf("p1", EnginesOf((0,), 1, 4), {"init": (0,), "train": (0,)}, 3)
    history.changed(0.0, [BoxIs((0,), (of,)), TrainerIs("p1", "running", 1, HOSTILE), Noted("error", HOSTILE, HOSTILE)])
    history.changed(1.0, [GpuLent(0, "p1", role=HOSTILE), Reported("p1", 0, {HOSTILE: 1.0, "reward": 0.5})])
    history.changed(2.0, [GpuLent(0), Waits("p1", "lease", 2.0, HOSTILE, (Party(HOSTILE),)), Demand("p1", 1, 4, 0, 0, 0, 8, 1.0, 4)])
    history.changed(3.0, [Reported("p1", 1, {HOSTILE: 2.0, "reward": float("nan")})])
    history.closed(4.0, HOSTILE)
    return history


def hostile_page() -> bytes:
    configuration = {"host": {"name": HOSTILE}, HOSTILE: [HOSTILE]}
    return page(page_data(hostile(), run=HOSTILE, directory=HOSTILE, configuration=configuration))


def test_no_text_of_a_child_can_end_the_element_it_is_in() -> None:
    data = data_json(page_data(hostile(), run=HOSTILE, directory=HOSTILE))
    assert not re.search(rb"[<>&]|\xe2\x80\xa8|\x1b", data)
    assert "onerror" in msgspec.json.decode(data)["run"]
    assert hostile_page().count(b"<script") == 2  # the data and our own


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "without its policy"])
def test_no_script_of_a_child_runs_in_a_real_browser(tmp_path: Path, guarded: bool) -> None:
    file = tmp_path / "hostile.html"
    text = hostile_page()
    file.write_bytes(text if guarded else re.sub(rb"<meta http-equiv[^>]*>", b"", text))
    shown = in_browser(file)
    (title,) = re.findall(r"<title>(.*?)</title>", shown)
    assert title != "pwned"
    assert "Trainshed" in title
    assert shown.count("<script") == 2
    assert "<img" not in shown


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.slow
def test_a_real_browser_draws_every_part(tmp_path: Path) -> None:
    record(tmp_path)
    file = tmp_path / "report.html"
    file.write_bytes(
        page(page_data(read_history(tmp_path, LATER), run="three/attempt_1", directory=str(tmp_path), configuration={"host": {}}))
    )
    shown = in_browser(file)
    for part in ("tiles", "legend", "gpu-splits", "pipeline-splits", "waits", "worth", "curves", "pipelines", "marks"):
        assert re.search(rf'id="{part}"[^>]*>\s*<\w', shown), f"{part} is empty"
    assert "three/attempt_1" in shown
    assert re.search(r'<canvas[^>]* height="[1-9]\d+"', shown)


def in_browser(file: Path) -> str:
    """What a headless Chromium without network makes of a page."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9", "--virtual-time-budget=2000", "--dump-dom"]
    profile = f"--user-data-dir={file.parent / 'profile'}"
    done = subprocess.run([CHROMIUM, *options, profile, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_what_may_be_secret_is_not_in_the_page() -> None:
    configuration = {
        "pipeline": [
            {"name": "p1", "engine": {"env": {"PLAIN": "s3cret", "HF_TOKEN": "s3cret"}, "api_key": "s3cret"}, "trainer": {"steps": 5}}
        ]
    }
    data = page_data(hostile(), run="run", directory="", configuration=configuration)
    told = dict(data.configuration)
    assert told["pipeline[p1].engine.env.PLAIN"] == told["pipeline[p1].engine.api_key"] == HIDDEN
    assert told["pipeline[p1].trainer.steps"] == "5"
    assert b"s3cret" not in page(data)


@given(
    some.lists(some.tuples(some.floats(0.001, 4), some.sampled_from("abcd")), min_size=1, max_size=60),
    some.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0]),
)
def test_a_thinned_lane_keeps_its_totals(moves: list[tuple[float, str]], width: float) -> None:
    lane, now = Lane(0.0), 0.0
    for seconds, kind in moves:
        lane.set(now, Doing(kind))
        now += seconds
    slices = list(thinned(lane, now, width))
    assert slices[0].begin == 0.0
    assert slices[-1].end == pytest.approx(now)
    sums: dict[Doing, float] = defaultdict(float)
    for one, other in zip(slices, [*slices[1:], None], strict=True):
        sums[one.doing] += one.end - one.begin
        if other is not None:
            assert one.end == pytest.approx(other.begin)
            assert one.doing != other.doing
    assert sums == pytest.approx(lane.seconds(now))
    if width:
        assert len(slices) <= 2 + (now / width + 1) * len({kind for _, kind in moves})


def test_a_long_run_is_drawn_in_fewer_slices() -> None:
    lane = Lane(0.0)
    for second in range(20_000):
        lane.set(second / 10, Doing("ab"[second % 2]))
    assert width_for([lane], 30_000) == 0.0
    width = width_for([lane], 3000)
    assert 0 < len(list(thinned(lane, 2000.0, width))) <= 3000


@pytest.mark.slow
def test_ten_thousand_events_make_a_small_page_at_once(tmp_path: Path) -> None:
    """`bin/bench fold` measures 30,000 and 1,000,000."""
    world = record(tmp_path, box=BOXES["crowded"], seed=1, steps=60, segment=200_000)
    assert world.events > 10_000
    began = time.process_time()
    made = page(page_data(read_history(tmp_path, LATER), run="run", directory=""))
    assert time.process_time() - began < 2.0
    assert len(made) < 2 << 20


def test_the_commands_write_where_they_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = tmp_path / "runs" / "three" / "attempt_1"
    record(attempt)
    (attempt / "run_id").write_text("three-1\n")
    assert main(["report", str(attempt), "-o", str(tmp_path / "r.html")]) == 0
    assert main(["timeline", str(attempt)]) == 0
    assert "three/attempt_1" in (tmp_path / "r.html").read_text()
    assert json.loads((attempt / "timeline.json").read_text())["otherData"]["run"] == "three/attempt_1"
    assert str(attempt / "timeline.json") in capsys.readouterr().out
    assert main(["report", str(attempt), "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "-o FILE" in capsys.readouterr().err
