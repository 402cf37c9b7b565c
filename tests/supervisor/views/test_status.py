"""`status`: names are whole however narrow the terminal, and every word is true at the moment at which it is read."""

import io

import pytest
from rich.console import Console

from supervisor.observe.status import EngineView, FailureView, GatewayView, GpuView, PipelineView, Status, TrainerView
from supervisor.views import status
from supervisor.views.status import ago, gib

HOSTILE = "\x1b[31m[red]oops[/red]\nnext"
LONG = "a-pipeline-with-a-name-of-some"


def view(name: str = "p1", **how: object) -> PipelineView:
    given: dict[str, object] = {
        "state": "rolling out", "step": 3, "steps": 400, "samples_done": 192, "target": 256, "reward": 0.4123, "first_reward": 0.0851,
        "weight_version": 2, "engines_awake": 1, "restarts": 1,
        "engines": (EngineView(rank=0, state="loading weights", incarnation=2, pids=(41, 42, 43), gpus=(0,), version=2, in_flight=7),),
        "trainer": TrainerView(state="running", incarnation=1, pids=(51, 52), gpus=(2, 3), holds=("train", "old_log_probs")),
        "gateway": GatewayView(url="http://127.0.0.1:20017", incarnation=1, pid=9, state="serving"),
        **how,
    }  # fmt: skip
    return PipelineView(name=name, **given)  # type: ignore[arg-type]


def snapshot(*pipelines: PipelineView, gpus: tuple[GpuView, ...] = ()) -> Status:
    return Status(run="q-1", started_at=0.0, uptime_s=3725.0, stopping=True, gpus=gpus, pipelines=pipelines)


def shown(snapshot: Status, width: int | None = None) -> list[str]:
    return [line.plain for line in status.lines(snapshot, width)]


def below(lines: list[str], start: str) -> str:
    """The remarks of a row, wherever they stand."""
    at = next(at for at, line in enumerate(lines) if line.startswith(start))
    more = [line.strip() for line in lines[at + 1 : at + 6]]
    here = [line for line in lines[at + 1 : at + 6] if line.startswith("    ")]
    return " ".join([lines[at], *more[: len(here)]])


def test_what_it_says() -> None:
    gpus = (
        GpuView(id=0, name="virtual GPU", holder="p1/engine/0", priority="rollout", used_bytes=5 << 20, held_bytes={"p1/engine/0": 5 << 20}),
        GpuView(id=1, name="H200", holder="p1/trainer", priority="actor_training", used_bytes=3 << 30, total_bytes=140 << 30,
                held_bytes={"p1/trainer": 2 << 30, "p2/engine/0": 600 << 20}),
        GpuView(id=2, name="v", fenced=HOSTILE),
    )  # fmt: skip
    text = "\n".join(shown(snapshot(view(), gpus=gpus)))
    for words in (
        "up 1 h 02 min",
        "stopping",
        "3/400",
        "192/256",
        "0.085 → 0.412",
        "p1/engine/0",
        "41 42 43",
        "holds its GPUs for actor training, old log-probs",
        "5.0 MiB",
        "3.0 GiB of 140.0 GiB",
        "actor training",
        "p2/engine/0 keeps 600 MiB",
        "unmeasured",
        "withheld: [red]oops[/red]\\nnext",
    ):
        assert words in text, words
    assert "\x1b" not in text
    assert "actor_training" not in text


@pytest.mark.parametrize("width", [40, 80, 100, 120, None])
def test_names_are_whole_and_lines_fit(width: int | None) -> None:
    waits = "its lease for actor training on GPUs 0, 1, 2, 3, 4, 5, 6, 7 (GPU 3: p2/engine/3, GPU 4: p2/engine/4, GPU 5: p2/engine/5)"
    engines = tuple(EngineView(rank=rank, state="loading weights", incarnation=12, pids=tuple(range(10000, 10008))) for rank in (0, 10))
    lines = shown(snapshot(view(waits_for=waits), view(LONG, engines=engines, waits_for=waits)), width)
    for name in ("p1/engine/0", "p1/trainer", "p1/gateway", f"{LONG}/engine/10", f"{LONG}/gateway"):
        assert [line for line in lines if line.startswith(f"{name} ")], name
    assert not any("…" in line or "..." in line for line in lines)
    if width is None:
        assert lines.count(f"    waits for {waits}") == 2, "in a pipe nothing is broken, and it does not make the table wide"
    else:
        assert max(map(len, lines)) <= max(width, len(f"{LONG}/engine/10  loading weights"))
        assert "".join(waits.split()) in "".join("".join(lines).split())


def test_other_columns_give_way() -> None:
    wide, narrow = ("\n".join(shown(snapshot(view()), width)) for width in (120, 60))
    assert "41 42 43" in wide
    assert "41 +2" not in wide
    assert "incarnation" in wide
    assert "41 42 43" not in narrow
    assert "incarnation" not in narrow


def test_a_failure_is_news_until_it_is_over_and_then_history() -> None:
    def row(**how: object) -> str:
        engine = EngineView(rank=0, incarnation=2, **how)  # type: ignore[arg-type]
        return below(shown(snapshot(view(engines=(engine,))), 80), "p1/engine/0")

    killed = "member 0 ended with signal 9: killed"
    over = row(state="serving", failure=FailureView(reason=killed, ago_s=200.0, over=True))
    assert over.endswith(f"restarted 3 min ago: {killed}")
    news = row(state="cold", note="starts again in 12 s", failure=FailureView(reason=killed, ago_s=8.4, over=False))
    assert news.endswith(f"starts again in 12 s failed 8 s ago: {killed}")
    asked = row(state="serving", failure=FailureView(reason="restarted by the operator", ago_s=7200.0, over=True, asked=True))
    assert asked.endswith("restarted by the operator 2 h ago")
    assert row(state="serving").endswith("-")


def test_a_pipeline_that_failed_says_so_in_one_word_and_why_below() -> None:
    why = "trainer retired after 3 restarts within 600 s: rank 0 ended with exit code 1: error: ValueError: no such thing"
    lines = shown(snapshot(view(state="failed", why=why)), 80)
    row = next(line for line in lines if line.startswith("p1  "))
    assert "failed" in row
    assert "retired" not in row
    assert " ".join(why.split()) in below(lines, "p1  ")


def test_it_is_printed_as_wide_as_the_terminal_and_unbroken_into_a_pipe() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        status.show(snapshot(view(waits_for="w" * 150 + " end")), Console(file=out, width=80, force_terminal=terminal, no_color=True))
        assert ("w" * 150 + " end" in out.getvalue()) == (not terminal)


def test_figures_for_people() -> None:
    assert [gib(size) for size in (None, 0, 1 << 19, 8_700_000, 600 << 20, 3 << 30)] == [
        "unmeasured", "0 MiB", "0.5 MiB", "8.3 MiB", "600 MiB", "3.0 GiB",
    ]  # fmt: skip
    assert [ago(seconds) for seconds in (0.2, 59, 60, 200, 3599, 3600, 9000, 90000, 200000)] == [
        "0 s ago", "59 s ago", "1 min ago", "3 min ago", "60 min ago", "1 h ago", "2 h ago", "25 h ago", "2 days ago",
    ]  # fmt: skip
