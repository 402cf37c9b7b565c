"""The guardian is the process above the supervisor: it restarts nothing, and leaves nothing behind, however the supervisor ends.

It uses the standard library only and one thread, and is executed as `python -I -S -E supervisor/host/processes/guardian.py <arguments>`.
It is a subreaper, so that every descendant of the supervisor becomes its child at the latest when the supervisor ends; it then
kills them all, removes what the supervisor had registered, and exits with the supervisor's code.

The supervisor writes lines to the descriptor in `TRAINSHED_GUARDIAN_FD` (see `guardian_link.py`): `sweep <path>` registers a path for
removal, `ready <code> <text>` lets the command of `run --detach` print the text and return with the code, `log <run> <path>` says where its
log is, `watchdog <seconds> <grace>` that its loop speaks from now on (0: no longer), and `alive` is what it then says every second.
A supervisor that is silent for so many seconds is ended, with everything below it: TERM to its children, after the grace SIGABRT to itself
(it writes its stack), then KILL to all.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GUARDIAN, GUARDIAN_FD = "TRAINSHED_GUARDIAN", "TRAINSHED_GUARDIAN_FD"
"""Variables of the supervisor's environment: the guardian's pid, and the descriptor that leads to it. (`guardian_link.py` takes them out.)"""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILL_SECONDS = 10.0
REMOVAL_SECONDS = 60.0
"""How long processes may take to die (a process inside a driver call can outlast SIGKILL); normally they need milliseconds."""
LEFT_OVER = ("sglang_loads_", "sgl_shm_", "sem.mp-", "nccl-", "cuda.shm.", "psm_")
"""Names in /dev/shm that SGLang and what it stands on leave behind when they are killed (and some when they are not)."""
TRACES = ".traces"
"""Ending of the files that name, one a line, what an engine has open in /dev/shm; below a registered folder (see `runtime/kinds/sglang.py`)."""
SWEPT_PREFIX = "trainshed-"
"""What is removed for us has a name that begins so: a run's folder in shared memory."""
MAX_LINES = 1 << 20
"""Bytes of a registration line that has no end: the supervisor is broken, and memory must not grow with it."""
LOOK_SECONDS = 1.0
"""Between two looks at a supervisor that says nothing."""
QUIET_SECONDS = 5.0
"""The supervisor's loop speaks every second; silence of this length is worth a word."""
ABORT_SECONDS = 2.0
"""How long a hung supervisor has to write its stack."""


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"guardian: {text}\n".encode())


class Registered:
    """What the supervisor has registered so far."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.ready: bytes | None = None
        """The code as one byte, and the text."""
        self.log: tuple[str, str] | None = None
        """The run, and the path of the supervisor's log."""
        self.watchdog = 0.0
        """Seconds of silence after which it is ended; 0 while its loop does not speak."""
        self.grace = 0.0
        self.beats = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINES:
            self._rest = b""
        for line in lines:
            verb, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
            if verb == "sweep" and may_sweep(rest):
                self.paths.add(rest)
            elif verb == "ready" and self.ready is None:
                code, _, text = rest.partition(" ")
                self.ready = bytes([int(code) & 255 if code.isdigit() else 0]) + text.encode("utf-8", "surrogateescape")
            elif verb == "log":
                run, _, path = rest.partition(" ")
                self.log = (run, path)
            elif verb == "watchdog":
                self.beats += 1
                limit, _, grace = rest.partition(" ")
                with contextlib.suppress(ValueError):
                    self.watchdog, self.grace = float(limit), float(grace)
            elif verb == "alive":
                self.beats += 1

    def tell(self, level: str, text: str, **fields: object) -> None:
        """Say something on the terminal and in the supervisor's log, which may hang for good."""
        say(text)
        if self.log is None:
            return
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
        line = json.dumps({"timestamp": stamp, "level": level, "event": f"guardian: {text}", "run": self.log[0], **fields})
        with contextlib.suppress(OSError):
            file = os.open(self.log[1], os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(file, "wb", buffering=0) as log:
                log.write(line.encode() + b"\n")


class Silence:
    """Measures how long the supervisor's loop has said nothing.

    Between two looks a few seconds count at most, because a machine that was suspended, or has stopped us, too, condemns nobody.
    """

    def __init__(self, registered: Registered, supervisor: int) -> None:
        self._registered, self._supervisor = registered, supervisor
        self._beats = 0
        self._seconds = 0.0
        self._told = False
        self._looked = time.monotonic()

    def too_long(self) -> bool:
        """Look, and say what is new. Return whether the limit has been reached."""
        now, before, registered = time.monotonic(), self._looked, self._registered
        self._looked = now
        if registered.beats != self._beats or registered.watchdog == 0.0 or traced(self._supervisor):
            if self._told:
                registered.tell("warning", f"the supervisor goes on; it had said nothing for {self._seconds:.0f} s")
            self._beats, self._seconds, self._told = registered.beats, 0.0, False
            return False
        self._seconds += min(now - before, 2 * LOOK_SECONDS)
        limit = registered.watchdog
        if self._seconds >= limit:
            return True
        if not self._told and self._seconds >= min(QUIET_SECONDS, limit / 2):
            self._told = True
            what = f"the supervisor (pid {self._supervisor}) has said nothing for {self._seconds:.0f} s: {doing(self._supervisor)}"
            registered.tell("warning", f"{what}. At {limit:g} s the run is ended ([health] watchdog_s)", supervisor=self._supervisor)
        return False


def state_of(pid: int) -> str:
    """Return the state of a process as one letter; "X" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "X"


def traced(pid: int) -> bool:
    """Return whether a debugger holds the process: then its silence is wanted."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return False


def doing(pid: int) -> str:
    """Say what a silent process does, for people."""
    state = state_of(pid)
    if state == "T":
        return f"it is stopped (`kill -CONT {pid}` lets it go on)"
    if state == "R":
        return "it computes, and its loop does not turn"
    where = ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii") as wchan:
        where = wchan.read().strip("0\n")
    return f"it waits{' for a device or a disk' if state == 'D' else ''}{f' ({where})' if where else ''}, and its loop does not turn"


def end_hung(supervisor: int, handle: int, registered: Registered) -> None:
    """End a supervisor whose loop does not turn: its children in order, as far as they can, then itself."""
    text = f"the supervisor has said nothing for {registered.watchdog:g} s: {doing(supervisor)}. The run is ended"
    registered.tell("critical", text, supervisor=supervisor)
    deadline = time.monotonic() + registered.grace
    below = [pid for pid in descendants(os.getpid()) if pid != supervisor]
    for pid in below:
        kill(pid, signal.SIGTERM, signal.SIGCONT)
    while time.monotonic() < deadline and any(state_of(pid) not in "ZX" for pid in below):
        time.sleep(0.02)  # nobody collects them: the supervisor would
    for numbers in ((signal.SIGABRT, signal.SIGCONT), (signal.SIGKILL,)):
        with contextlib.suppress(ProcessLookupError):
            for number in numbers:
                signal.pidfd_send_signal(handle, number)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if poll.poll(ABORT_SECONDS * 1000):
            return


def may_sweep(path: str) -> bool:
    """Return whether a path is unmistakably ours: absolute, without detours, its last part starting with `trainshed-`."""
    return os.path.isabs(path) and os.path.normpath(path) == path and os.path.basename(path).startswith(SWEPT_PREFIX)


def sweep(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            remove_traces(path)
            _remove_folder(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except (OSError, subprocess.SubprocessError) as error:
        say(f"cannot remove {path}: {error}")


def _remove_folder(path: str) -> None:
    """Remove a folder, however deep a child has made it. Raises OSError."""
    try:
        shutil.rmtree(path)
    except RecursionError:  # it calls itself for each level; `rm` does not, and takes no path that is longer than a name
        done = subprocess.run(["rm", "-rf", "--", path], capture_output=True, text=True, timeout=REMOVAL_SECONDS, check=False)
        if done.returncode != 0:
            raise OSError(done.stderr.strip()[-200:]) from None


def remove_traces(path: str) -> None:
    """Remove what killed engines had open in /dev/shm. None of them lives any more; only names that are theirs are touched."""
    for note in Path(path).glob(f".tmp/*{TRACES}"):
        for name in _read(note).splitlines():
            if name.startswith(LEFT_OVER) and "/" not in name:
                with contextlib.suppress(OSError):
                    os.unlink(f"/dev/shm/{name}")


def _read(note: Path) -> str:
    """Return what an engine's note says, without waiting and without end; nothing when it is no file."""
    with contextlib.suppress(OSError):
        descriptor = os.open(note, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            return (file.read(1 << 20) or b"").decode("utf-8", "replace")
    return ""


def children() -> dict[int, list[int]]:
    """Return the children of every process, from one pass over /proc."""
    by_parent: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                by_parent.setdefault(parent, []).append(int(name))
    return by_parent


def descendants(root: int) -> list[int]:
    by_parent, found, todo = children(), [], [root]
    while todo:
        born = by_parent.get(todo.pop(), [])
        found += born
        todo += born
    return found


def kill(pid: int, *numbers: signal.Signals) -> None:
    """Send signals (SIGKILL), unless the number has meanwhile come to name a process that is not below us."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        above = pid
        while above not in (0, 1, os.getpid()):
            with open(f"/proc/{above}/stat", "rb") as stat:
                above = int(stat.read().rpartition(b")")[2].split()[1])
        if above == os.getpid():
            for number in numbers or (signal.SIGKILL,):
                signal.pidfd_send_signal(handle, number)
    except OSError:
        pass
    finally:
        os.close(handle)


def reap() -> bool:
    """Collect the dead. Return False when we have no children at all, which for a subreaper means no descendants."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def end_all(seconds: float) -> list[int]:
    """Kill every descendant to a fixed point. Return the pids that would not die in time."""
    deadline = time.monotonic() + seconds
    while reap():
        living = descendants(os.getpid())
        if time.monotonic() > deadline:
            return living
        for pid in living:
            kill(pid)
        time.sleep(0.002)  # the dead turn into zombies of ours within a tick; no event says "all of them"
    return []


def start(arguments: list[str], report: int) -> subprocess.Popen[bytes]:
    checkout = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(part for part in (str(checkout), os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path, GUARDIAN: str(os.getpid()), GUARDIAN_FD: str(report)}
    command = [sys.executable, "-P", "-m", os.environ.get("TRAINSHED_GUARDED_MODULE", "supervisor"), *arguments]
    return subprocess.Popen(command, env=environment, pass_fds=(report,), start_new_session=True)


def watch(supervisor: int, handle: int, report: int, wake: int, registered: Registered, on_ready: int | None) -> None:
    """Forward signals and take registrations until the supervisor has ended, or has been silent for too long: then end it."""
    poll = select.poll()
    for descriptor in (handle, report, wake):
        poll.register(descriptor, select.POLLIN)
    silence = Silence(registered, supervisor)
    while True:
        ready = {
            descriptor for descriptor, _ in poll.poll(min(LOOK_SECONDS, registered.watchdog / 4) * 1000 if registered.watchdog else None)
        }
        if report in ready:
            data = os.read(report, 65536)
            if data:
                registered.feed(data)
            else:
                poll.unregister(report)
        if on_ready is not None and registered.ready is not None:
            with contextlib.suppress(BrokenPipeError):  # the one who waited has ended
                os.write(on_ready, registered.ready)
            os.close(on_ready)
            on_ready = None
            leave_terminal()
        if wake in ready:
            for number in os.read(wake, 64):
                if number in FORWARDED:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, number)
        if handle in ready:
            return None
        if silence.too_long():
            return end_hung(supervisor, handle, registered)


def leave_terminal() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def detach() -> int:
    """Split in two. The new half, in its own session, returns the descriptor on which it reports how the start went.

    The old half never returns: it waits for that report, prints its text and exits with its code, or with the code that the new half exits with.
    A signal to the old half ends the waiting, and not the run: the new half gets no signal of this terminal.
    """
    report, reporting = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(report)
        os.setsid()
        return reporting
    os.close(reporting)
    for number in FORWARDED:
        signal.signal(number, stop_waiting)
    received = b""
    while more := os.read(report, 65536):
        received += more
    if not received:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    code, text = received[0], received[1:]
    if text:
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2 if code else 1, text + b"\n")
    os._exit(code)


def stop_waiting(number: int, _frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"\nsupervise: not waiting any longer; the run goes on. See `supervise status`; `supervise stop` ends it.\n")
    os._exit(128 + number)


def open_all(descriptors: tuple[int, ...] = (0, 1, 2)) -> None:
    """Open /dev/null in place of a standard stream that was closed (`>&-`), so that nothing which we open gets its number."""
    for descriptor in descriptors:
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == descriptor:
                os.set_inheritable(nowhere, True)
            else:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def main(arguments: list[str]) -> int:
    open_all()
    on_ready = detach() if "--detach" in arguments else None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        say("this kernel has no child subreapers; escaped grandchildren of a killed supervisor would survive")
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in FORWARDED:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` means it
            signal.signal(number, lambda *_: None)  # the number arrives on the wake-up descriptor
    report, reporting = os.pipe()
    supervisor = start(arguments, reporting)
    os.close(reporting)
    handle = os.pidfd_open(supervisor.pid)
    registered = Registered()
    watch(supervisor.pid, handle, report, wake, registered, on_ready)
    code = supervisor.wait()
    os.set_blocking(report, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(report, 65536):  # registered just before the end
            registered.feed(data)
    for pid in end_all(KILL_SECONDS):
        say(f"process {pid} does not end on SIGKILL (a driver holds it); look at it with `ps -o pid,stat,wchan:30 {pid}`")
    for path in registered.paths:
        sweep(path)
    if code < 0:
        say(f"the supervisor was killed (signal {-code}); everything of the run was ended with it. `supervise status` says how to go on.")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
