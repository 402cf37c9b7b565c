"""What remains of a very long run has bounded space, and says the same of where the time went."""

import gzip
from pathlib import Path

import pytest

from supervisor.attempt import recording
from supervisor.attempt.recording import FOLDER, HISTORY_SUFFIX, Opened, told
from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.views.history.reader import read_history
from tests.harness.boxes import BOXES
from tests.harness.recorded_runs import EPOCH, record

LATER = EPOCH + 1e6


def remains(attempt: Path) -> list[Path]:
    return sorted((attempt / FOLDER).glob(f"*{HISTORY_SUFFIX}"))


def size(attempt: Path) -> int:
    return sum(path.stat().st_size for path in remains(attempt))


def widths(attempt: Path) -> list[float]:
    found = []
    for path in remains(attempt):
        with gzip.open(path) as file:
            opened = next(told(file))
        assert isinstance(opened, Opened)
        found.append(opened.drawn_s)
    return found


def same_totals(short: History, whole: History) -> None:
    assert short.until == pytest.approx(whole.until, abs=0.01)
    for gpu, split in totals.of_gpus(whole).items():
        assert totals.of_gpus(short)[gpu].by_who == pytest.approx(split.by_who, abs=0.05)
    for name, split in totals.of_pipelines(whole).items():
        assert totals.of_pipelines(short)[name].by_kind == pytest.approx(split.by_kind, abs=0.05)
        one, other = totals.waited(short, name), totals.waited(whole, name)
        assert (one.counted, one.total) == pytest.approx((other.counted, other.total), abs=0.01)
        assert one.by_kind == pytest.approx(other.by_kind, abs=0.01)
        assert one.by_pipeline == pytest.approx(other.by_pipeline, abs=0.01)
        mine, theirs = short.pipelines[name], whole.pipelines[name]
        assert mine.versions == theirs.versions
        assert (mine.counts.samples[-1], mine.counts.tokens[-1]) == (theirs.counts.samples[-1], theirs.counts.tokens[-1])
        assert mine.work == pytest.approx(theirs.work)
    assert [(mark.kind, mark.about, mark.text) for mark in short.marks] == [(mark.kind, mark.about, mark.text) for mark in whole.marks]


@pytest.mark.parametrize("box", ["three", "seed", "crowded"])
def test_compacted_remains_have_the_same_totals(tmp_path: Path, box: str) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    record(whole, box=BOXES[box], seed=0, steps=4, segment=40_000)
    record(short, box=BOXES[box], seed=0, steps=4, segment=40_000, kept=1)
    for path in remains(short)[::2]:  # some are compacted, some not yet
        recording._compact(path, 60.0)
    assert 60.0 in widths(short)
    same_totals(read_history(short, LATER), read_history(whole, LATER))


def test_compacting_again_and_again_keeps_the_totals(tmp_path: Path) -> None:
    record(tmp_path / "whole", box=BOXES["crowded"], steps=24, segment=400_000, faults=None)
    record(tmp_path / "short", box=BOXES["crowded"], steps=24, segment=400_000, faults=None, kept=1)
    whole = read_history(tmp_path / "whole", LATER)
    before = size(tmp_path / "short")
    for width in recording.WIDTHS:
        for path in remains(tmp_path / "short"):
            recording._compact(path, width)
        assert set(widths(tmp_path / "short")) == {width}
        same_totals(read_history(tmp_path / "short", LATER), whole)
    assert size(tmp_path / "short") < before / 2


@pytest.mark.slow
def test_the_space_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    """The longer it runs the coarser its beginning is; what is newest is compacted last. Only a run of years loses its beginning."""
    run = {"box": BOXES["crowded"], "steps": 20, "seed": 1, "segment": 200_000, "faults": None, "kept": 1}
    record(tmp_path / "free", **run)
    limit = size(tmp_path / "free") * 2 // 3
    record(tmp_path / "bounded", **run, kept_history=limit)
    assert size(tmp_path / "bounded") <= limit
    found = widths(tmp_path / "bounded")
    assert len(found) > 2
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.0
    same_totals(read_history(tmp_path / "bounded", LATER), read_history(tmp_path / "free", LATER))
    record(tmp_path / "tiny", **run, kept_history=1500)
    assert size(tmp_path / "tiny") <= max(1500, remains(tmp_path / "tiny")[0].stat().st_size)
    assert read_history(tmp_path / "tiny", LATER).marks[0].text == "what was before is not kept"
