"""A GPU of this box has one supervisor: claims are seen by every user, and only a living owner keeps one."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from supervisor.host import claims as room
from supervisor.host.claims import PREFIX, Claim, Entry, GpusTaken, NoPlace, claim_gpus, claims
from tests.harness.other_user import NOBODY, python_as_nobody

CHECKOUT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from supervisor.host.claims import Claim, claim_gpus
claim = Claim(run="other-1", name="other/attempt_1", directory="/runs/other/attempt_1", gpus=("GPU-a", "GPU-b"), labels=("0", "1"))
entry = claim_gpus(claim, Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def mine(*gpus: str, run: str = "mine-1") -> Claim:
    return Claim(run=run, name="mine/attempt_1", directory="/runs/mine/attempt_1", gpus=gpus, labels=gpus)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As /dev/shm is: everybody's, and sticky."""
    tmp_path.chmod(0o1777)
    return tmp_path


@pytest.fixture
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds GPU-a and GPU-b."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(folder)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_gpu_that_is_held_is_refused_by_name_and_free_when_its_holder_is_killed(folder: Path, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(GpusTaken) as refused:
        claim_gpus(mine("GPU-b", "GPU-c"), folder)
    assert (refused.value.key, refused.value.value) == ("host.gpus", "GPU GPU-b")
    for part in ("run other/attempt_1 of ", f"pid {holder.pid}", "/runs/other/attempt_1", "bin/supervise stop --run /runs/other/attempt_1"):
        assert part in str(refused.value)
    claim_gpus(mine("GPU-c"), folder).close()
    assert [held.claim.run for held in claims(folder)] == ["other-1"], "a claim that was refused, or given back, is none"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert claims(folder) == []
    entry = claim_gpus(mine("GPU-b"), folder)
    assert [path.name for path in folder.glob(f"{PREFIX}*")] == [entry.path.name], "what the dead left is cleared away"
    entry.close()


def test_of_many_who_claim_at_once_one_gets_it(folder: Path) -> None:
    """Descriptors have locks of their own, so that threads stand for processes."""
    got: list[Entry] = []
    refused: list[GpusTaken] = []
    begin = threading.Barrier(6)

    def claim(number: int) -> None:
        begin.wait()
        try:
            got.append(claim_gpus(mine("GPU-a", run=f"run-{number}"), folder))
        except GpusTaken as error:
            refused.append(error)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    got[0].close()


def test_every_user_may_read_a_claim_whatever_the_umask_is(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        entry = claim_gpus(mine("GPU-a"), folder)
    finally:
        os.umask(before)
    assert entry.path.stat().st_mode & 0o777 == 0o644
    entry.close()


@pytest.mark.parametrize("what", ["a FIFO", "a link", "a folder", "nonsense"])
def test_what_else_lies_there_is_no_claim(folder: Path, what: str) -> None:
    path = folder / f"{PREFIX}0"
    match what:
        case "a FIFO":
            os.mkfifo(path)
        case "a link":
            path.symlink_to("/etc/passwd")
        case "a folder":
            path.mkdir()
        case _:
            path.write_text("{")
            fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
    assert claims(folder) == []
    claim_gpus(mine("GPU-a"), folder).close()


def test_a_place_where_others_could_remove_a_claim_is_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NoPlace, match="others could remove"):
        claim_gpus(mine("GPU-a"), tmp_path)
    with pytest.raises(NoPlace):
        claim_gpus(mine("GPU-a"), tmp_path / "not there")


KEEPS = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_SH)
print("kept", flush=True)
sys.stdin.read()
"""


def test_whoever_locks_a_dead_man_s_claim_does_not_keep_it(folder: Path, holder: "subprocess.Popen[str]") -> None:
    (held,) = claims(folder)
    holder.kill()
    holder.wait()
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(held.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "kept\n"
        assert claims(folder) == []
        claim_gpus(mine("GPU-a"), folder).close()
        keeper.kill()


AS_NOBODY = """
import os, sys
from pathlib import Path
from supervisor.host.claims import Claim, GpusTaken, claim_gpus, claims
folder = Path(sys.argv[1])
(held,) = claims(folder)
print(held.uid, held.claim.run)
try:
    claim_gpus(Claim(run="theirs-1", name="t", directory="/t", gpus=("GPU-a",), labels=("0",)), folder)
except GpusTaken as error:
    print(error)
for act in (lambda: held.path.unlink(), lambda: held.path.rename(folder / "elsewhere"), lambda: held.path.write_text("")):
    try:
        act()
    except PermissionError:
        print("refused")
forged = folder / "trainshed-claim-forged"
forged.write_bytes(held.path.read_bytes())  # in root's name, locked, and the process that it names lives
import fcntl
fcntl.flock(os.open(forged, os.O_RDONLY), fcntl.LOCK_EX)
print([held.uid for held in claims(folder)])
"""


def test_another_user_sees_a_claim_and_can_neither_take_it_nor_forge_one(folder: Path) -> None:
    entry = claim_gpus(mine("GPU-a"), folder)
    try:
        for above in (folder.parent, folder.parent.parent):  # pytest's, which are closed to others
            above.chmod(above.stat().st_mode | 0o011)
        told = python_as_nobody(AS_NOBODY, str(folder))
        assert told.returncode == 0, told.stderr
        first, taken, *others = told.stdout.splitlines()
        assert first == "0 mine-1"
        assert "held by run mine/attempt_1 of root" in taken
        assert "Ask root" in taken
        assert others == ["refused"] * 3 + ["[0]"]
        assert (folder / "trainshed-claim-forged").stat().st_uid == NOBODY
    finally:
        entry.close()


def test_nobody_can_make_us_read_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(room._MOST + 5):
        (folder / f"{PREFIX}{number:04}").write_bytes(msgspec.json.encode(mine("GPU-a")))
    looked: list[Path] = []
    read = room._read
    monkeypatch.setattr(room, "_read", lambda path, clear: looked.append(path) or read(path, clear))
    claims(folder)
    assert len(looked) == room._MOST
