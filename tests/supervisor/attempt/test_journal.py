"""The journal survives everything, and a sweep kills only whom it names exactly."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from supervisor.attempt.journal import NAME, Began, Ended, Gone, Journal, Line, Process, Shared, Spawned, read
from supervisor.attempt.sweep import hold, survivors, sweep
from supervisor.host.processes.group import Command, Processes
from supervisor.host.processes.proc import boot_id, read_stat, tag_of

TAG = "run-7:p1/engine/0:1"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(started: list[subprocess.Popen[bytes]], tag: str | None) -> Process:
    env = {"PATH": os.environ["PATH"], **({} if tag is None else {"TRAINSHED_TAG": tag})}
    process = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
    started.append(process)
    while tag is not None and tag_of(process.pid) != tag:  # until it is executed
        pass
    stat = read_stat(process.pid)
    assert stat is not None
    return Process(process.pid, stat.start, tag or "")


def write(runs: Path, *entries: object, attempt: str = "attempt_1") -> Path:
    (runs / attempt).mkdir(mode=0o700, exist_ok=True)
    path = runs / attempt / NAME
    path.write_bytes(b"".join(msgspec.json.encode({"time": 0.0, "what": entry}) + b"\n" for entry in entries))
    path.chmod(0o600)
    return path


def dead_writer(boot: str | None = None) -> Began:
    return Began(boot if boot is not None else boot_id(), 1, 1)


def lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


def test_members_and_their_descendants_are_swept(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    member, descendant, other = sleeper(sleepers, TAG), sleeper(sleepers, TAG), sleeper(sleepers, "run-7:p1/engine/0:2")
    write(tmp_path, dead_writer(), Spawned(TAG, (member,)))
    assert set(sweep(tmp_path).killed) == {member.pid, descendant.pid}
    assert not lives(member.pid)
    assert lives(other.pid)


def test_what_a_double_kill_leaves_is_told_without_touching_it(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    member, other = sleeper(sleepers, TAG), sleeper(sleepers, "run-7:p1/engine/0:2")
    journal = write(tmp_path, dead_writer(), Spawned(TAG, (member,)))
    assert survivors(journal) == [member.pid]
    assert lives(member.pid)
    assert lives(other.pid)
    assert survivors(write(tmp_path, dead_writer(), Spawned(TAG, (member,)), Gone(TAG))) == []
    assert survivors(write(tmp_path, dead_writer("another boot"), Spawned(TAG, (member,)))) == []
    assert survivors(tmp_path / "nowhere") == []


def test_a_forged_entry_kills_no_innocent(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    innocent, tagged = sleeper(sleepers, None), sleeper(sleepers, TAG)
    forged = (
        (dead_writer(), Spawned(TAG, (Process(innocent.pid, innocent.start, TAG),)), Gone(TAG)),
        (dead_writer(), Spawned("", (Process(innocent.pid, innocent.start, ""),))),
        (dead_writer(), Spawned("x", (Process(innocent.pid, innocent.start, "x"),))),
        (dead_writer(), Spawned("x", (Process(tagged.pid, tagged.start + 1, "x"),))),
        (dead_writer(), Spawned("x", (Process(os.getpid(), tagged.start, "x"), Process(1, 0, ""), Process(-1, 0, ""), Process(0, 0, "")))),
        (dead_writer("another boot"), Spawned(TAG, (tagged,))),
        (dead_writer(), Spawned(TAG, (Process(tagged.pid, tagged.start + 1000, TAG),))),
        (dead_writer(), Spawned(TAG, (tagged,)), Began(boot_id(), 1, 1)),
    )
    for number, entries in enumerate(forged):
        write(tmp_path, *entries, attempt=f"attempt_{number}")
    assert sweep(tmp_path).killed == []
    assert lives(innocent.pid)
    assert lives(tagged.pid)


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    member = sleeper(sleepers, TAG)
    own = read_stat(os.getpid())
    assert own is not None
    path = write(tmp_path, Began(boot_id(), own.pid, own.start), Spawned(TAG, (member,)))
    swept = sweep(tmp_path)
    assert swept.running == [path]
    assert lives(member.pid)


def test_a_fifo_as_a_journal_holds_no_start_up(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    (tmp_path / "attempt_1").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "attempt_1" / NAME)
    member = sleeper(sleepers, TAG)
    write(tmp_path, dead_writer(), Spawned(TAG, (member,)), attempt="attempt_2")
    assert sweep(tmp_path).killed == [member.pid]


FORGERS: dict[str, Callable[[Path], None]] = {
    "a journal of another user": lambda journal: os.chown(journal, 1001, -1),
    "a journal that others can write": lambda journal: journal.chmod(0o662),
    "an attempt of another user": lambda journal: os.chown(journal.parent, 1001, -1),
    "an attempt that others can write": lambda journal: journal.parent.chmod(0o777),
}


@pytest.mark.parametrize("what", FORGERS)
def test_only_a_journal_of_ours_is_believed(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]], what: str) -> None:
    if "another user" in what and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    member, shared = sleeper(sleepers, TAG), tmp_path / "trainshed-run-7"
    shared.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    FORGERS[what](write(runs, dead_writer(), Shared(str(shared)), Spawned(TAG, (member,))))
    swept = sweep(runs)
    assert (swept.killed, swept.removed) == ([], [])
    assert lives(member.pid)
    assert shared.exists()


def test_what_a_living_run_holds_is_spared_whatever_another_journal_says(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    """As when somebody has copied the attempt of a run before it was resumed."""
    own = read_stat(os.getpid())
    assert own is not None
    member, descendant, shared, copied = sleeper(sleepers, TAG), sleeper(sleepers, TAG), tmp_path / "trainshed-a", tmp_path / "trainshed-b"
    for name in ("living", "copies"):
        (tmp_path / name).mkdir()
    for folder in (shared, copied):
        folder.mkdir()
    write(tmp_path / "living", Began(boot_id(), own.pid, own.start), Shared(str(shared)), Spawned(TAG, (member,)))
    write(tmp_path / "copies", dead_writer(), Shared(str(shared)), Spawned(TAG, (member,)))
    other = write(tmp_path / "copies", dead_writer(), Shared(str(copied)), Spawned(TAG, (member,)), attempt="attempt_2")
    lock = hold(copied)
    swept = sweep(tmp_path / "copies", tmp_path / "living")
    assert (swept.killed, swept.removed) == ([], [])
    assert other in swept.running, "its run lives: its folder in shared memory is locked"
    os.close(lock)
    assert sweep(tmp_path / "copies", tmp_path / "living").removed == [str(copied)]
    assert shared.exists()
    assert lives(member.pid)
    assert lives(descendant.pid)


def test_an_orderly_end_costs_nothing(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    member = sleeper(sleepers, TAG)
    write(tmp_path, dead_writer(), Spawned(TAG, (member,)), Ended())
    assert sweep(tmp_path).killed == []


def test_only_our_shared_memory_is_removed(tmp_path: Path) -> None:
    ours, other, link = tmp_path / "trainshed-x", tmp_path / "precious", tmp_path / "trainshed-link"
    for folder in (ours, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    link.symlink_to(other)
    (ours / "link").symlink_to(other)
    detour = f"{ours}/../precious"
    runs = tmp_path / "runs"
    runs.mkdir()
    write(runs, dead_writer(), *(Shared(str(path)) for path in (ours, other, link, detour, "trainshed-relative", "/trainshed-none")))
    assert sweep(runs).removed == [str(ours)]
    assert not ours.exists()
    assert (other / "file").exists()


def test_broken_journals_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    path = write(tmp_path, dead_writer(), Gone("a"))
    path.write_bytes(
        path.read_bytes()
        + b'{"time": 1, "what": {"entry": "spaw\n\xff\xfe\n\n[]\n'
        + b"[" * 5000
        + b"\n"
        + msgspec.json.encode(Line(2.0, Ended()))
        + b"\n"
    )
    assert [type(line.what) for line in read(path)] == [Began, Gone, Ended]
    link = tmp_path / "attempt_2"
    link.mkdir()
    (link / NAME).symlink_to(path)
    assert sweep(tmp_path).killed == []


def test_a_group_is_on_disk_before_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        journal = Journal(tmp_path / NAME, clock=lambda: 12.5)
        command = Command(argv=["cat", NAME], env={"PATH": os.environ["PATH"], "TRAINSHED_TAG": TAG}, cwd=tmp_path, log=tmp_path / "log")
        async with Processes().running() as processes:
            group = await processes.spawn([command], tag=TAG, record=journal.spawned)
            await group.ended()
            await group.kill()
            journal.gone(TAG)
            journal.end()
            seen = [msgspec.json.decode(line, type=Line).what for line in (tmp_path / "log").read_bytes().splitlines()]
            assert seen[1:] == [Spawned(TAG, (Process(*group.members[0].identity, tag=TAG),))]

    anyio.run(main)
    lines = list(read(tmp_path / NAME))
    assert [line.time for line in lines] == [12.5] * 4
    assert oct((tmp_path / NAME).stat().st_mode)[-3:] == "600"


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    program = f"""
import resource, signal
from pathlib import Path
from supervisor.attempt.journal import Journal, read
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path({str(tmp_path / NAME)!r}), lambda: 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, -1))
for number in range(10): journal.gone("a tag " + str(number))
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
journal.end()
print(journal.lost > 0, [type(line.what).__name__ for line in read(journal.path)][-1])
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "True Ended\n"


def test_after_a_double_kill_the_next_start_finds_the_escapees(tmp_path: Path) -> None:
    """Supervisor killed without a guardian: its child dies with it, the grandchild in a session of its own is swept."""
    attempt = tmp_path / "attempt_1"
    attempt.mkdir()
    program = f"""
import anyio, os
from pathlib import Path
from supervisor.attempt.journal import Journal
from supervisor.host.processes.group import Command, Processes
folder = Path({str(attempt)!r})
async def main():
    journal = Journal(folder / "journal.jsonl", lambda: 0.0)
    env = {{"PATH": os.environ["PATH"], "TRAINSHED_TAG": {TAG!r}}}
    command = Command(argv=["sh", "-c", "setsid sleep 60 & echo $!; wait"], env=env, cwd=folder, log=folder / "log")
    await Processes().spawn([command], tag={TAG!r}, record=journal.spawned)
    print(1, flush=True)
    await anyio.sleep(60)
anyio.run(main)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    with subprocess.Popen([sys.executable, "-P", "-c", program], env=env, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        while not (said := (attempt / "log").read_text()).endswith("\n"):
            pass
        escapee = int(said)
        while tag_of(escapee) != TAG:
            pass
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
    assert sweep(tmp_path).killed == [escapee]
    assert not lives(escapee)
