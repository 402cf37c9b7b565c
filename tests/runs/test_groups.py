"""Engine groups that are hurt in real processes: scripted engines under a real supervisor, gateway and trainer.

Names: f1..f25 are the failure modes of the reference on group recovery, r1..r18 the rows on engines of the fault model; what needs no
process stands in tests/engines/lifecycle/test_health.py and tests/supervisor/scheduler/test_engines.py under the same names. Every run ends with the
trainer having checked every token of every sample, and with nothing left behind.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.observe.control_socket import ActRequest, ask, parse_target
from supervisor.observe.status import EngineView, PipelineView
from tests.harness.concurrent_cases import Stage, beside, stage_of
from tests.harness.faulty_run import PYTHON, Faulty
from tests.harness.supervised_run import CHECKOUT, Run

SHAPES = [("one", 1), ("one", 2), ("per-gpu", 2), ("per-gpu", 8)]
SLOW = {"set": {"token_delay": 0.02}}
"""A request of 20 tokens takes 0.4 s: there is time to hurt somebody."""


@contextmanager
def making(folder: Path) -> Iterator[Callable[..., Faulty]]:
    made: list[Faulty] = []

    def one(*, members: str = "one", tp: int = 1, engines: int = 2, **options: Any) -> Faulty:
        options = {"steps": 1, "target": 64, "tokens": 20, "trains": False} | options
        faulty = Faulty(folder, members=members, tp=tp, gpus=engines * tp, **options)
        for rank in range(engines):
            faulty.script(rank, SLOW)
        made.append(faulty)
        return faulty

    try:
        yield one
    finally:
        for faulty in made:
            for run in faulty.runs:
                run.stop()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Faulty]]:
    with making(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    def play(case: Callable[..., None], parameters: dict[str, Any], folder: Path) -> None:
        with making(folder) as one:
            case(one, **parameters)

    with stage_of(request, play, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


def serving(rank: int = 0, *, busy: bool = True, life: int = 1) -> Callable[[PipelineView], bool]:
    def holds(view: PipelineView) -> bool:
        engine = view.engines[rank]
        return engine.state == "serving" and engine.incarnation == life and (not busy or engine.in_flight > 0)

    return holds


def finished(faulty: Faulty, run: Run, *, restarts: int | None = 1, steps: int = 1, seconds: float = 30.0) -> None:
    """Everything was delivered once and right (the trainer has looked at it), and nothing is left."""
    assert run.end(seconds) == 0, run.tail()
    if restarts is not None:
        assert run.summary["p1"]["restarts"] == restarts, run.tail()
    assert [line["step"] for line in faulty.samples(run)] == list(range(steps))
    assert run.left_behind() == []


def failures(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.log() if record["event"] == "engine group failed"]


def recoveries(run: Run, outcome: str = "routed") -> list[dict[str, Any]]:
    return [record for record in run.log() if record["event"] == f"engine group: {outcome}"]


def engine(run: Run, rank: int = 0) -> EngineView:
    snapshot = run.status()
    assert snapshot is not None
    return snapshot.pipelines[0].engines[rank]


def haste() -> float:
    """By how much longer than on a quiet box everything may take."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def act(run: Run, verb: str, target: str) -> None:
    ask(run.directory / "control.sock", ActRequest(verb, parse_target(target)))  # type: ignore[arg-type]


# -- measured, so nobody runs beside them (and they come first)


@pytest.mark.parametrize(("members", "tp"), SHAPES)
def test_f9_r4_r9_kill_of_any_member_ends_and_restarts_the_whole_group(make: Callable[..., Faulty], members: str, tp: int) -> None:
    """The head lives on and is stuck when a follower dies: without exit watching it would hang for ten minutes."""
    faulty = make(members=members, tp=tp, target=96)
    run = faulty.start()
    view = run.when("p1", serving(), "a busy engine")
    pids = view.engines[0].pids
    assert len(pids) == (tp if members == "per-gpu" else 1)
    victim = len(pids) - 1
    os.kill(pids[victim], signal.SIGKILL)
    began = time.monotonic()
    run.when("p1", lambda view: view.engines[0].state not in ("serving",), "the quarantine")
    assert time.monotonic() - began < 0.25 * haste()  # 50 ms by pidfd; the rest is how this test looks
    run.when("p1", lambda view: view.engines[0].incarnation == 2, "all of them gone")
    assert not any(alive(pid) for pid in pids)
    finished(faulty, run)
    (failure,) = failures(run)
    assert failure["cause"] == "exit"
    assert failure["member"] == victim
    assert failure["collateral"] == [index for index in range(len(pids)) if index != victim]
    assert failure["attempt"] == 1
    (recovery,) = recoveries(run)
    steps = [recovery[f"{step}_s"] for step in ("unrouted", "gone", "empty", "started", "ready", "loaded", "routed")]
    assert recovery["unrouted_s"] < 0.25 * haste()
    assert steps[1:] == sorted(steps[1:])
    assert recovery["routed_s"] < 5.0


@pytest.mark.parametrize(("members", "tp", "member"), [("one", 1, 0), ("per-gpu", 2, 1), ("per-gpu", 4, 3)])
def test_f25_r10_a_stopped_member_is_found_and_killed_before_anything_starts(
    make: Callable[..., Faulty], members: str, tp: int, member: int
) -> None:
    """Its silence is not its end: the pid must be gone before the next life begins."""
    faulty = make(members=members, tp=tp, target=96)
    run = faulty.start()
    pids = run.when("p1", serving(), "a busy engine").engines[0].pids
    os.kill(pids[member], signal.SIGSTOP)
    began = time.monotonic()
    run.when("p1", lambda view: view.engines[0].incarnation == 2, "the next life", 15)
    budget = 3 * (0.1 + 0.4) if member == 0 else 3 * (0.4 + 0.6)
    assert time.monotonic() - began < budget + (1.0 + 1.0) * haste()  # one more probe where it is the only engine, and this machine's haste
    assert not any(alive(pid) for pid in pids)
    finished(faulty, run)
    assert failures(run)[0]["cause"] == "probe"
    assert failures(run)[0]["silent_s"] > 0


def test_f1_r11_a_second_of_503_restarts_nobody(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=1, target=48)
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    faulty.turn(0, generate="hang", health="503", health_generate="503")
    time.sleep(1.0)  # a prefill as long, in this run's scale, as a minute is in the defaults'
    faulty.turn(0, generate="ok", health="ok", health_generate="ok")
    finished(faulty, run, restarts=0)
    assert any(record["event"] == "engine is suspect" for record in run.log())


@pytest.mark.parametrize("where", ["health_generate"])
def test_f3_r13_a_probe_that_is_never_answered_is_asked_one_at_a_time(make: Callable[..., Faulty], where: str) -> None:
    faulty = make(engines=1, health="probe_failures = 1000\nprogress_failures = 1000", target=32)
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    before = faulty.turn(0, generate="hang", **{where: "hang"})["asked"].get(f"/{where}", 0)
    time.sleep(1.2)
    most = 1.2 / 0.5 + 2 if where == "health" else 1.2 / 1.0 + 2
    assert faulty.turn(0)["asked"][f"/{where}"] - before <= most
    faulty.turn(0, generate="ok", **{where: "ok"})
    finished(faulty, run, restarts=0)


def test_f15_four_hung_engines_take_the_time_of_one(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=4, target=160)
    run = faulty.start()
    view = run.when("p1", lambda view: all(serving(rank)(view) for rank in range(4)), "four busy engines")
    for each in view.engines:
        os.kill(each.pids[0], signal.SIGSTOP)
    began = time.monotonic()
    run.when("p1", lambda view: all(each.incarnation == 2 for each in view.engines), "four next lives", 15)
    assert time.monotonic() - began < 3 * 0.5 + 0.5 + 2.0 * haste()
    finished(faulty, run, restarts=4)


def test_f24_our_own_stall_kills_nobody(make: Callable[..., Faulty]) -> None:
    """Whoever is asked just then answers in time, and we do not hear it; one unheard answer would be enough here."""
    faulty = make(engines=2, target=96, health="probe_s = 0.02\nprobe_failures = 1\nprogress_s = 600.0\nsilence_s = 600.0")
    run = faulty.start()
    run.when("p1", lambda view: serving(0)(view) and serving(1)(view), "two busy engines")
    for rank in range(2):
        faulty.turn(rank, generate="hang", health="slow", slow=0.25)
    time.sleep(0.3)
    supervisor = run.supervisor_pid()
    for _ in range(3):
        os.kill(supervisor, signal.SIGSTOP)
        time.sleep(0.7)  # longer than any probe of this run may take
        os.kill(supervisor, signal.SIGCONT)
        time.sleep(0.1)
    for rank in range(2):
        faulty.turn(rank, generate="ok", health="ok")
    finished(faulty, run, restarts=0)
    assert any("our own loop was late" in str(record["event"]) for record in run.log())


def test_f22_r25_nothing_outlives_a_killed_supervisor(make: Callable[..., Faulty]) -> None:
    faulty = make(members="per-gpu", tp=2)
    for rank in range(2):
        faulty.script(rank, {"member": 1, "set": {"child": "hold", "ignore_term": True}}, SLOW)
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    os.kill(run.supervisor_pid(), signal.SIGKILL)
    assert run.end(5) == 128 + signal.SIGKILL
    assert [line for line in run.left_behind() if "control.sock" not in line] == []


def test_r15_an_engine_that_takes_no_term_is_killed_after_its_grace(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=4, target=16, tokens=2)
    for rank in range(4):
        faulty.script(rank, {"set": {"ignore_term": True}})
    run = faulty.start()
    run.when("p1", lambda view: view.engines_awake > 0, "an engine")
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    run.end(10)
    assert time.monotonic() - began < 1.0 + 1.0 + 1.5 * haste()  # trainer's and engines' grace, whatever their number
    assert run.left_behind() == []


# -- an end


@beside
def test_r9_each_member_of_four_in_turn(make: Callable[..., Faulty]) -> None:
    faulty = make(members="per-gpu", tp=4, engines=1, target=96, restarts=10, health="restart_window_s = 0.001")
    run = faulty.start()
    for member in range(4):
        view = run.when("p1", serving(life=member + 1), "a busy engine")
        os.kill(view.engines[0].pids[member], signal.SIGKILL)
    finished(faulty, run, restarts=4)
    assert [failure["member"] for failure in failures(run)] == [0, 1, 2, 3]


@beside
def test_f9_a_process_of_the_tree_that_nobody_else_watches(make: Callable[..., Faulty]) -> None:
    """SGLang's scheduler is a child of its main process, which may live on, and answer, without it."""
    faulty = make()
    faulty.script(0, {"set": {"token_delay": 0.02, "helper": True}})
    run = faulty.start()
    pid = run.when("p1", serving(), "a busy engine").engines[0].pids[0]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    finished(faulty, run)
    assert "a process of its tree ended" in str(failures(run)[0]["why"])
    assert failures(run)[0]["cause"] == "exit"


@beside
def test_f19_an_engine_that_leaves_with_code_0_has_failed(make: Callable[..., Faulty]) -> None:
    faulty = make()
    faulty.script(0, {"life": 1, "set": {"token_delay": 0.02, "exit_after": 0.8}}, {"life": 2, **SLOW})
    run = faulty.start()
    finished(faulty, run)
    assert "exit code 0" in str(failures(run)[0]["why"])


@beside
def test_f23_what_ran_on_a_dead_engine_goes_on_elsewhere_with_its_tokens(make: Callable[..., Faulty]) -> None:
    faulty = make()
    faulty.script(0, {"life": 1, "set": {"token_delay": 0.02, "die_at_token": 60}}, {"life": 2, **SLOW})
    run = faulty.start()
    finished(faulty, run)
    spans = faulty.samples(run)[0]["spans"]
    assert [0, 1, 0] in spans  # tokens of the dead are in samples that another has finished
    assert run.summary["p1"]["samples"] == 64


@beside
def test_f16_a_restarted_engine_gets_requests_again(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=1)
    run = faulty.start()
    view = run.when("p1", serving(), "a busy engine")
    os.kill(view.engines[0].pids[0], signal.SIGKILL)
    finished(faulty, run)
    assert [0, 2, 0] in faulty.samples(run)[0]["spans"]


@beside
def test_f16_an_engine_that_has_no_room_has_not_failed(make: Callable[..., Faulty]) -> None:
    """503 and 429 say: not now. A canary would hear the same, and condemn it."""
    faulty = make(target=96)
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    faulty.turn(0, generate="503", health_generate="lie")
    time.sleep(1.0)
    faulty.turn(0, generate="ok", health_generate="ok")
    finished(faulty, run, restarts=0)


@beside
def test_f11_a_recovered_engine_serves_the_published_version_only(make: Callable[..., Faulty]) -> None:
    faulty = make(steps=3, trains=True, target=32)
    run = faulty.start()
    view = run.when("p1", lambda view: view.weight_version == 1 and serving(1)(view), "the second rollout")
    os.kill(view.engines[1].pids[0], signal.SIGKILL)
    finished(faulty, run, steps=3)
    for line in faulty.samples(run):
        assert {version for _, _, version in line["spans"]} == {line["step"]}
    assert any(life == 2 for line in faulty.samples(run) for _, life, _ in line["spans"])


# -- at the start


@beside
def test_r1_an_interpreter_that_is_no_program(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=1, restarts=1)
    broken = faulty.cwd / "python"
    broken.write_text('#!/bin/sh\n[ "$1" = -m ] || { echo 0.5.23; exit 0; }\nexit 1\n')
    broken.chmod(0o755)
    faulty.file.write_text(faulty.file.read_text().replace(str(CHECKOUT / "tests" / "harness" / "faulty_python"), str(broken)))
    run = faulty.start()
    run.when("p1", lambda view: view.engines[0].state == "retired", "its retirement", 15)
    assert engine(run).restarts == 1


@pytest.mark.parametrize(("members", "tp", "member"), [("one", 1, 0), ("per-gpu", 4, 2)])
@beside
def test_f17_r2_r3_an_end_in_start_up_is_seen_at_once(make: Callable[..., Faulty], members: str, tp: int, member: int) -> None:
    faulty = make(members=members, tp=tp, health="start_s = 60.0")
    faulty.script(0, {"life": 1, "member": member, "set": {"start_exit": 7}}, SLOW)
    run = faulty.start()
    finished(faulty, run)
    failure = failures(run)[0]
    assert failure["incarnation"] == 1
    assert failure["member"] == member
    assert failure["collateral"] == [index for index in range(tp if members == "per-gpu" else 1) if index != member]
    assert recoveries(run)[0]["routed_s"] < 3.0


@beside
def test_f17_r2_a_start_that_hangs_ends_at_its_deadline(make: Callable[..., Faulty]) -> None:
    faulty = make(health="start_s = 1.0")
    faulty.script(0, {"life": 1, "set": {"boot_503": 600.0}}, SLOW)
    run = faulty.start()
    finished(faulty, run)
    assert failures(run)[0]["cause"] == "action"


@beside
def test_f17_a_member_that_never_comes_to_the_rendezvous(make: Callable[..., Faulty]) -> None:
    faulty = make(members="per-gpu", tp=2, health="start_s = 1.0")
    faulty.script(0, {"life": 1, "member": 1, "set": {"start_delay": 600.0}}, SLOW)
    run = faulty.start()
    finished(faulty, run)


@beside
def test_f18_an_engine_that_always_crashes_is_retired_and_the_others_go_on(make: Callable[..., Faulty]) -> None:
    faulty = make(restarts=2, target=96)
    faulty.script(0, {"set": {"start_exit": 7}})
    run = faulty.start()
    run.when("p1", lambda view: view.engines[0].state == "retired", "its retirement", 20)
    assert engine(run).restarts == 2
    failure = engine(run).failure
    assert failure is not None
    assert "ended" in failure.reason
    finished(faulty, run, restarts=2)
    assert recoveries(run, "retired")


@beside
def test_f18_a_retired_engine_comes_back_when_the_operator_says_so(make: Callable[..., Faulty]) -> None:
    faulty = make(restarts=1, engines=1, target=16)
    faulty.script(0, {"life": 1, "set": {"start_exit": 7}}, {"life": 2, "set": {"start_exit": 7}}, SLOW)
    run = faulty.start()
    run.when("p1", lambda view: view.engines[0].state == "retired", "its retirement", 20)
    # a pipeline without any engine says so to whoever asks; this trainer gives up then, and its next life comes after the reset
    act(run, "reset", "p1/engine/0")
    act(run, "reset", "p1/engine/0")
    run.when("p1", serving(0, busy=False, life=3), "the third life", 20)
    assert any("operator: reset" in str(record["event"]) for record in run.log())


@beside
def test_f8_r12_somebody_elses_server_on_the_port_is_not_taken_for_ours(make: Callable[..., Faulty]) -> None:
    faulty = make()
    faulty.script(0, {"life": 1, "set": {"open_to_all": True, "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    finished(faulty, run)
    assert "another process has the port" in str(failures(run)[0]["why"])


@beside
def test_f2_a_green_light_and_no_token_is_no_start(make: Callable[..., Faulty]) -> None:
    """The canary by the way that requests take: without it this engine would be routed."""
    faulty = make(health="start_s = 1.0")
    faulty.script(0, {"life": 1, "set": {"generate": "hang", "health_generate": "lie"}}, SLOW)
    run = faulty.start()
    finished(faulty, run)
    assert [0, 1, 0] not in faulty.samples(run)[0]["spans"]
    assert failures(run)[0]["cause"] == "action"


@beside
def test_f7_r14_ports_that_somebody_has_are_left_alone(make: Callable[..., Faulty]) -> None:
    script = "import socket,time\nl=[socket.create_server(('127.0.0.1',p)) for p in range(29003,29200,20)]\nprint('ok',flush=True)\ntime.sleep(60)"
    squatter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        faulty = make(members="per-gpu", tp=2, ports=(29000, 29999))  # the cases beside this one must not meet the squatter
        run = faulty.start()
        finished(faulty, run, restarts=0)
    finally:
        squatter.kill()
        squatter.wait()


@beside
def test_f20_at_most_two_start_at_a_time(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=6)
    for rank in range(6):
        faulty.script(rank, {"set": {"start_delay": 0.2, "token_delay": 0.02}})
    run = faulty.start()
    finished(faulty, run, restarts=0)
    starting: set[object] = set()
    most = 0
    for record in run.log():
        if record["event"] == "engine is starting":
            starting.add(record["engine"])
        elif str(record["event"]).startswith("engine is ") and "engine" in record:
            starting.discard(record["engine"])
        most = max(most, len(starting))
    assert most == 2


# -- a hang


@beside
def test_f2_r12_health_is_green_and_generations_hang(make: Callable[..., Faulty]) -> None:
    faulty = make()
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    faulty.turn(0, generate="hang", health_generate="lie")
    finished(faulty, run)
    assert "no token for" in str(failures(run)[0]["why"])


@beside
def test_f2_health_is_green_and_every_request_fails(make: Callable[..., Faulty]) -> None:
    faulty = make(target=128)
    run = faulty.start()
    run.when("p1", serving(), "a busy engine")
    faulty.turn(0, generate="reset", health_generate="lie")
    finished(faulty, run)
    assert "requests failed in a row" in str(failures(run)[0]["why"])


@beside
def test_f1_r11_slow_but_alive(make: Callable[..., Faulty]) -> None:
    faulty = make(engines=1, target=16, tokens=4)
    faulty.script(0, {"set": {"token_delay": 0.5, "health": "slow", "health_generate": "slow", "slow": 0.3}})
    run = faulty.start()
    finished(faulty, run, restarts=0)


# -- in the middle of a control call

CONTROL = [
    "/pause_generation",
    "/flush_cache",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/update_weights_from_disk",
    "/continue_generation",
]


@pytest.mark.parametrize("knob", ["die_at", "die_after"])
@pytest.mark.parametrize("rank", [0, 1])
@beside
def test_r5_r6_r7_r8_an_end_in_each_control_call(make: Callable[..., Faulty], rank: int, knob: str) -> None:
    """Training on GPU 0: engine 0 gives way and comes back; engine 1 changes its weights in place. Each life dies in another call."""
    paths = CONTROL if rank == 0 else [path for path in CONTROL if "memory_occupation" not in path]
    faulty = make(steps=14, trains=True, target=24, tokens=4, restarts=100, health="restart_window_s = 0.001")
    faulty.script(rank, *({"life": life, "set": {knob: path, "token_delay": 0.01}} for life, path in enumerate(paths, 1)), SLOW)
    run = faulty.start()
    finished(faulty, run, restarts=None, steps=14, seconds=60)
    lives = {failure["incarnation"] for failure in failures(run)}
    assert lives >= set(range(1, len(paths) + 1)), "a fault did not fire"
    for line in faulty.samples(run):
        assert {version for _, _, version in line["spans"]} == {line["step"]}


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation", "/update_weights_from_disk"])
@beside
def test_r10_a_hang_in_each_control_call_ends_at_its_deadline(make: Callable[..., Faulty], path: str) -> None:
    faulty = make(steps=2, trains=True, target=16, tokens=4, health="pause_s = 0.5\nwake_s = 0.5\nload_s = 0.5")
    for rank in range(2):
        faulty.script(rank, {"life": 1, "set": {"hang_at": path, "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    finished(faulty, run, restarts=None, steps=2)
    assert failures(run)[0]["cause"] == "action"


@beside
def test_f10_a_death_in_a_change_of_weights_holds_nobody_up(make: Callable[..., Faulty]) -> None:
    """The other engine and the trainer go on; nothing waits for the dead one's answer."""
    faulty = make(steps=2, trains=True, engines=3, target=24, tokens=4)
    faulty.script(2, {"life": 1, "set": {"die_at": "/update_weights_from_disk", "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    finished(faulty, run, restarts=None, steps=2)
    log = run.log()
    failed = next(record for record in log if record["event"] == "engine group failed")
    assert failed["engine"] == 2
    assert run.summary["p1"]["waited_s"] < 5


@pytest.mark.parametrize("update", ["400", "wrong"])
@beside
def test_f11_r7_an_engine_with_other_weights_is_never_routed(make: Callable[..., Faulty], update: str) -> None:
    faulty = make(steps=2, trains=True, target=16, tokens=4)
    faulty.script(1, {"life": 1, "set": {"update": update, "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    finished(faulty, run, restarts=None, steps=2)
    assert failures(run)
    for line in faulty.samples(run):
        assert {version for _, _, version in line["spans"]} == {line["step"]}


# -- what is left on the GPU


@beside
def test_f12_r17_a_release_that_releases_nothing_grants_nothing(make: Callable[..., Faulty]) -> None:
    faulty = make(steps=1, trains=True, target=16, tokens=4, health="release_deadline_s = 0.5")
    faulty.script(0, {"life": 1, "set": {"release": "noop"}})
    run = faulty.start()
    finished(faulty, run, restarts=None)
    assert failures(run)[0]["cause"] == "memory"
    log = run.log()
    granted = next(index for index, record in enumerate(log) if record["event"] == "lease granted" and record["roles"] == ["train"])
    gone = next(index for index, record in enumerate(log) if record["event"] == "engine is cold" and record["engine"] == 0)
    assert gone <= granted + 1  # one event may tell both, the grant first


@beside
def test_f12_r17_a_release_that_takes_its_time_is_waited_for(make: Callable[..., Faulty]) -> None:
    faulty = make(steps=1, trains=True, target=16, tokens=4)
    faulty.script(0, {"set": {"release": "late", "late": 0.6}})
    run = faulty.start()
    finished(faulty, run, restarts=0)
    log = {record["event"]: record for record in run.log() if record.get("roles") == ["train"]}
    assert "lease granted" in log


@pytest.mark.parametrize("kind", ["sleep", "hold", "hold port"])
@beside
def test_f5_r15_children_that_have_left_home_go_with_the_group(make: Callable[..., Faulty], kind: str) -> None:
    faulty = make(members="per-gpu", tp=2)
    faulty.script(0, {"life": 1, "set": {"child": kind, "ignore_term": True, "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    pids = run.when("p1", serving(), "a busy engine").engines[0].pids
    before = set(_pythons(faulty))
    os.kill(pids[0], signal.SIGKILL)
    run.when("p1", lambda view: view.engines[0].incarnation == 2, "the end of the first life")
    assert len(before) >= 2, "the fault did not fire"
    assert not any(alive(pid) for pid in before)
    finished(faulty, run)


def _pythons(faulty: Faulty) -> list[int]:
    """The double-forked children of this run's scripted engines."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                ours = Path(os.readlink(f"/proc/{name}/cwd")).is_relative_to(faulty.cwd.resolve())
            except OSError:
                continue
            if ours and b"time.sleep(600)" in command and PYTHON.encode() in command:
                found.append(int(name))
    return found


@beside
def test_f6_r16_who_left_everything_behind_ends_with_its_engine_and_its_port_is_free(make: Callable[..., Faulty]) -> None:
    """A child of the engine has left its session, its parent and its environment, and has a port of the window: its mark tells whose it is."""
    faulty = make(target=160, health="release_deadline_s = 0.5")
    faulty.script(0, {"life": 1, "set": {"child": "port bare", "token_delay": 0.02}}, SLOW)
    run = faulty.start()
    pids = run.when("p1", serving(), "a busy engine").engines[0].pids
    (bare,) = _pythons(faulty)
    os.kill(pids[0], signal.SIGKILL)
    run.when("p1", lambda view: view.engines[0].incarnation == 2, "a second life", 15)
    assert not os.path.exists(f"/proc/{bare}")
    assert not any("stuck" in str(record["event"]) for record in run.log())
    finished(faulty, run)


@beside
def test_f6_a_strangers_listener_in_the_window_of_a_dead_group_is_left_alone(make: Callable[..., Faulty]) -> None:
    """It came after the group and lives on: it is none of ours, so the group is gone, and its next life takes other ports."""
    faulty = make(target=160, health="release_deadline_s = 1.0")
    run = faulty.start()
    pids = run.when("p1", serving(), "a busy engine").engines[0].pids
    first = faulty.live(0)["port"]
    script = f"import socket,time\nl=socket.create_server(('127.0.0.1',{first + 9}))\nprint('ok',flush=True)\ntime.sleep(60)"
    stranger = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        os.kill(pids[0], signal.SIGKILL)
        run.when("p1", serving(0, busy=False, life=2), "a second life", 15)
        assert stranger.poll() is None
        assert faulty.live(0, 2)["port"] != first
        finished(faulty, run)
    finally:
        stranger.kill()
        stranger.wait()
    (said,) = [record for record in run.log() if str(record["event"]).startswith("ports of its window are a stranger's")]
    assert said["ports"] == [first + 9]
    assert said["holders"][0].startswith(f"pid {stranger.pid} (")


@beside
def test_a_stop_in_the_back_off_closes_the_failure(make: Callable[..., Faulty]) -> None:
    """Every `engine group failed` has its closing line, also when the run ends first."""
    faulty = make(target=400, health="restart_window_s = 600.0")
    faulty.script(0, {"set": {"start_exit": 7}})
    run = faulty.start()
    run.when("p1", lambda view: view.engines[0].state == "cold" and view.engines[0].restarts >= 2, "a back-off", 20)
    run.process.send_signal(signal.SIGTERM)
    run.end(20)
    assert len(failures(run)) >= 2
    assert len(recoveries(run, "failed again")) == len(failures(run)) - 1
    assert len(recoveries(run, "stopped")) == 1


@beside
def test_r5_death_while_the_gpu_is_lent_out_starts_nothing_there(make: Callable[..., Faulty]) -> None:
    """The engine sleeps, its GPU is the trainer's: its death is confirmed, and its next life waits for the lease."""
    faulty = make(steps=2, trains=True, target=16, tokens=4)
    faulty.file.write_text(faulty.file.read_text().replace("train = true", "train = true, training = 1.0"))
    run = faulty.start()
    view = run.when("p1", lambda view: "train" in view.trainer.holds and view.engines[0].state == "paused", "training")
    os.kill(view.engines[0].pids[0], signal.SIGKILL)
    run.when("p1", lambda view: view.engines[0].state == "cold" and "train" in view.trainer.holds, "its end")
    time.sleep(0.3)
    assert engine(run).state == "cold"
    finished(faulty, run, steps=2)


@beside
def test_a_sleeping_engine_that_hangs_is_found(make: Callable[..., Faulty]) -> None:
    faulty = make(steps=1, trains=True, target=16, tokens=4)
    faulty.file.write_text(faulty.file.read_text().replace("train = true", "train = true, training = 5.0"))
    run = faulty.start()
    view = run.when("p1", lambda view: "train" in view.trainer.holds and view.engines[0].state == "paused", "training")
    os.kill(view.engines[0].pids[0], signal.SIGSTOP)
    run.when("p1", lambda view: view.engines[0].state == "cold", "its end", 8)
    finished(faulty, run)


# -- the operator


@beside
def test_restart_drain_pause_and_resume_are_idempotent_and_logged(make: Callable[..., Faulty]) -> None:
    faulty = make(target=280)
    run = faulty.start()
    run.when("p1", lambda view: serving(0)(view) and serving(1)(view), "two busy engines")
    for _ in range(2):
        act(run, "pause", "p1/engine/0")
    run.when("p1", lambda view: view.engines[0].state == "paused", "the pause")
    pid = engine(run).pids[0]
    assert alive(pid)
    for _ in range(2):
        act(run, "drain", "p1/engine/0")
    run.when("p1", lambda view: view.engines[0].state == "cold", "the drain")
    assert not alive(pid)
    time.sleep(0.3)
    assert engine(run).state == "cold"
    for _ in range(2):
        act(run, "resume", "p1/engine/0")
    run.when("p1", serving(0, life=2), "its second life")
    for _ in range(2):
        act(run, "restart", "p1/engine/0")
    run.when("p1", serving(0, life=3), "its third life")
    act(run, "drain", "p1/engine/0")
    run.when("p1", lambda view: view.engines[0].state == "cold", "a drain of a serving engine")
    act(run, "resume", "p1/engine/0")
    finished(faulty, run, restarts=0)
    said = [str(record["event"]).split(": ")[1] for record in run.log() if str(record["event"]).startswith("operator: ")]
    assert said == ["pause", "pause", "drain", "drain", "resume", "resume", "restart", "restart", "drain", "resume"]


@beside
def test_restart_of_the_gateway_is_not_one_of_the_trainer(make: Callable[..., Faulty]) -> None:
    faulty = make(target=96)
    run = faulty.start()
    trainer = run.when("p1", serving(), "a busy engine").trainer.pids
    act(run, "restart", "p1/gateway")
    view = run.when("p1", lambda view: view.gateway.incarnation == 2 and view.gateway.pid is not None, "another gateway")
    assert view.trainer.pids == trainer
    finished(faulty, run, restarts=0)
