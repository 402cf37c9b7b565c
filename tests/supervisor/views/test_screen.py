"""`top` shows every GPU, every pipeline and every wait on one screen, however small it is, and whatever a child calls itself."""

from pathlib import Path

import pytest
from rich.cells import cell_len

from supervisor.attempt.recording import RecordedScheduler
from supervisor.cli.main import main
from supervisor.history.facts import BoxIs, EnginesOf, GpuLent, Noted, PipelineOf, Reported, TrainerIs, Waits
from supervisor.history.fold import History
from supervisor.simulate.faults.simulation import Simulation
from supervisor.views.history.reader import HistoryReader
from supervisor.views.history.screen import Screen, screen
from tests.harness.boxes import box, pipeline
from tests.harness.recorded_runs import EPOCH, record


def four(gpus: int = 8) -> object:
    return box(gpus, *(pipeline(f"p{i}", [2 * i, 2 * i + 1], list(range(gpus)), slots=4) for i in range(4)))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50), (100, 20)])
def test_four_pipelines_on_eight_gpus_fit_a_screen(tmp_path: Path, width: int, height: int) -> None:
    reader = HistoryReader(tmp_path)
    seen_waits = 0

    def look(world: Simulation, recorded: RecordedScheduler) -> None:
        nonlocal seen_waits
        if recorded.handled % 20:
            return
        reader.poll()
        lines = [line.plain for line in screen(reader.history, "four/attempt_1", Screen(width, height, keys="q quit"))]
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width
        text = "\n".join(lines)
        for gpu in range(8):
            assert f"GPU {gpu} " in text
        for id, one in world.scheduler.pipelines.items():
            assert id in text
            seen_waits += bool(one.figures.waits_since)
        assert text.count("waits for ") == sum(bool(one.figures.waits_since) for one in world.scheduler.pipelines.values())
        assert "q quit" in lines[-1]

    record(tmp_path, box=four, steps=3, seed=3, look=look)  # type: ignore[arg-type]
    assert seen_waits


def test_sixteen_gpus_share_lines() -> None:
    history = told(16)
    lines = [line.plain for line in screen(history, "run", Screen(80, 24))]
    assert len(lines) <= 24
    assert all(f"GPU {gpu:<2} " in "\n".join(lines) for gpu in range(16))


def test_what_a_child_writes_stays_text() -> None:
    history = told(2)
    hostile = "\x1b[2J[red]x[/red]\nGPU 9 "
    history.changed(
        2.0, [Waits("p0", "lease", 2.0, hostile), Noted("error", hostile, hostile), Reported("p0", 1, {"reward": float("inf")})]
    )
    text = "\n".join(line.plain for line in screen(history, hostile, Screen(120, 24)))
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert "\nGPU 9" not in text


def told(gpus: int) -> History:
    history = History()
    history.opened(0.0, EPOCH, life=True)
    of = tuple(PipelineOf(f"p{i}", EnginesOf(tuple(range(gpus)), 1, 4), {"train": (i,)}, 3) for i in range(2))
    history.changed(0.0, [BoxIs(tuple(range(gpus)), of), TrainerIs("p0", "running", 1), Reported("p0", 0, {"reward": 0.5})])
    history.changed(1.0, [GpuLent(gpu, "p1", gpu) for gpu in range(gpus)])
    return history


def test_the_command_prints_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = tmp_path / "runs" / "four" / "attempt_1"
    record(attempt, box=four, steps=2, faults=None)  # type: ignore[arg-type]
    (attempt / "run_id").write_text("four-1\n")
    assert main(["top", str(attempt), "--once", "--width", "80", "--height", "24"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert "every pipeline has ended" in lines[-1]
    assert main(["top", str(attempt)]) == 2  # no terminal
