"""A member of an engine group for tests, in SGLang's dialect and with its documented traps: standard library, no model, ready in some 20 ms.

Started as `kind = "sglang"` by a `python` that is really `tests/harness/faulty_python` (it drops "-m sglang.launch_server"). A group of N processes
meets at its rendezvous as SGLang's does; the head serves, followers answer everything with 200. Memory is one memfd for each virtual
GPU, so that the supervisor measures it. The next token is a checksum of everything so far: a lost, doubled or swapped one shows.

Traps as they are: a release or resume out of turn kills the process; a request to a paused engine hangs and cannot be aborted; the death
of a follower leaves the head answering and stuck. What else it does wrong is told by `Knobs`, read at the start from
`SCRIPTS/<pipeline>.<rank>.json` ([{"life": 1, "member": 0, "set": {…}}]; `life` and `member` may be left out), or while it lives by
POST /script (also `"for": seconds`, and `"nap": seconds`). Each member says where it is in `SCRIPTS/live/<pipeline>.<rank>.<member>.<life>`: its pid and port.
"""

import os
import select
import sys
import time
import zlib

from faulty_lean import SIGBUS, SIGTERM, connected, die, dumps, ignore, listener, loads, suppress, wait_for_a_signal

FIRST, VOCABULARY = 4, 60
MEMORY = 2 << 20
PR_SET_NAME = 15


class Knobs:
    """Everything that it can do wrong; the defaults do nothing wrong. Times in seconds; a `die_*` of -1 is never."""

    start_delay = 0.0  # before the port is bound
    boot_503 = 0.0  # after that: the port answers 503
    start_exit = -1  # exit code at once
    start_signal = 0
    health = "ok"  # ok, 503, hang, slow, refuse (the port is closed), reset
    health_generate = "ok"  # the same, and lie: 200 whatever else is wrong
    slow = 0.0  # what slow means
    generate = "ok"  # ok, hang, 500, 503, 400, reset
    token_delay = 0.0
    exit_after = -1.0  # seconds of life
    exit_code = 0
    die_at_token = -1
    die_at = ""  # a path: dies when asked this
    die_after = ""  # a path: dies when it has answered this
    hang_at = ""  # a path: never answers this, and computes nothing meanwhile
    release = "ok"  # ok, noop (200 and keeps the memory), late
    late = 0.0  # what late means
    update = "ok"  # ok, 400, wrong (another version than was asked for)
    ignore_term = False
    child = ""  # a double-forked process: sleep, or some of: hold (the memory), port (the listener), bare (clean environment)
    helper = False  # a child of its own, as SGLang's scheduler is: its death goes unnoticed here
    open_to_all = False  # answers without a key, as somebody else's server does
    bind_other = False  # listens on another port than it was told to
    memory = MEMORY
    pool_lacks = 0  # tokens by which its KV pool is smaller than it was told


class Request:
    def __init__(self, rid, body):
        self.rid = rid
        self.params = body.get("sampling_params") or {}
        self.prompt = body["input_ids"]
        self.state = zlib.crc32(((self.params.get("sampling_seed") or 0) % 2**63).to_bytes(8, "big"))
        for token in self.prompt:
            self.state = zlib.crc32(token.to_bytes(4, "big"), self.state)
        self.stream = bool(body.get("stream"))
        self.limit = self.params.get("max_new_tokens") or 16
        self.tokens = []
        self.pairs = []
        self.versions = []
        self.aborted = False
        self.due = 0.0
        self.sent = 0
        self.health = False

    def step(self, version):
        token = FIRST + self.state % VOCABULARY
        self.pairs.append((-(self.state >> 8) / 2**24 * 5.0, token, None))
        self.state = zlib.crc32(token.to_bytes(4, "big"), self.state)
        self.tokens.append(token)
        if self.versions and self.versions[-1]["version"] == version:
            self.versions[-1]["end"] = len(self.tokens)
        else:
            self.versions.append({"version": version, "start": len(self.tokens) - 1, "end": len(self.tokens)})

    def answer(self, version, reason, since=0):
        return {
            "text": "",
            "output_ids": self.tokens[since:],
            "meta_info": {
                "id": self.rid,
                "finish_reason": reason,
                "prompt_tokens": len(self.prompt),
                "completion_tokens": len(self.tokens),
                "cached_tokens": 0,
                "weight_version": version,
                "weight_versions": self.versions,
                "output_token_logprobs": self.pairs[since:],
            },
        }


def expected(prompt, seed, count):
    """What an uninterrupted request makes."""
    request = Request("", {"input_ids": list(prompt), "sampling_params": {"sampling_seed": seed}})
    for _ in range(count):
        request.step("0")
    return request.tokens


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.read = b""
        self.out = b""
        self.request = None  # a Request that runs for it
        self.closing = False


class Engine:
    def __init__(self, options, tag, key):
        self.options = options
        _, self.group, life = tag.rsplit(":", 2)[-3:] if tag.count(":") >= 2 else ("", "p/engine/0", "1")
        self.life = int(life)
        self.rank = int(options.get("node-rank", 0))
        self.count = int(options.get("nnodes", 1))
        self.key = key
        self.knobs = Knobs()
        self.scripts = options.get("scripts")
        self.scripted = {}
        self.version = options.get("weight-version", "default")
        self.model = options.get("model-path", "scripted")
        self.paused = False
        self.released = set()
        self.born = time.monotonic()
        self.ready_at = self.born
        self.connections = {}
        self.timers = []
        self.asked = {}
        self.tokens = 0
        self.peers = []
        self.rendezvous = None
        self.stuck = False  # a follower is gone: every collective blocks
        self.waiting = 0  # followers that have not answered this step
        self.acknowledged = False
        self.memory = []
        self.device = None
        self.canaries = []  # what it was asked for before it served anybody
        self.poll = select.poll()

    # -- the start

    def read_script(self):
        if not self.scripts:
            return
        pipeline, _, rank = self.group.split("/")
        try:
            with open(f"{self.scripts}/{pipeline}.{rank}.json", encoding="utf-8") as file:
                rules = loads(file.read())
        except OSError:
            return
        for rule in rules:
            if rule.get("life", self.life) == self.life and rule.get("member", self.rank) == self.rank:
                self.turn(rule["set"])
        self.scripted = dict(vars(self.knobs))

    def turn(self, knobs):
        for name, value in knobs.items():
            if not hasattr(Knobs, name):
                raise SystemExit(f"no knob {name}")
            setattr(self.knobs, name, value)

    def spell(self, knobs, seconds, nap):
        """Turn knobs, for so many seconds or for good; a nap is as good as a stop, and ends by itself."""
        usual = {name: self.scripted.get(name, getattr(Knobs, name, None)) for name in knobs}
        self.turn(knobs)
        if seconds:
            self.later(seconds, lambda: self.turn(usual))
        if nap:
            self.later(0.0, lambda: time.sleep(nap))

    def start(self):
        self.read_script()
        knobs = self.knobs
        if knobs.ignore_term:
            ignore(SIGTERM)
        self.hold()
        if knobs.start_exit >= 0:
            sys.stderr.write("the script wants an end at the start\n")
            os._exit(knobs.start_exit)
        if knobs.start_signal:
            os.kill(os.getpid(), knobs.start_signal)
        if knobs.start_delay:
            time.sleep(knobs.start_delay)
        self.listen()
        self.ready_at = time.monotonic() + knobs.boot_503
        if knobs.helper and os.fork() == 0:
            self.name("scripted::scheduler")
            wait_for_a_signal()
        if knobs.child:
            self.double_fork(knobs.child)
        self.meet()
        self.announce()

    def name(self, text):
        with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(text[:15])

    def hold(self):
        if "SCRIPTED_BOX" in os.environ:  # cards of `gpu_box.py` instead of virtual GPUs
            from gpu_allocations import EngineMemory

            self.device = EngineMemory(os.environ["SCRIPTED_BOX"], os.environ)
            return
        for device in filter(None, os.environ.get("TRAINSHED_GPUS", "").split(",")):
            number = device.partition(":")[2]
            descriptor = os.memfd_create(f"trainshed-gpu-{number}", os.MFD_CLOEXEC)
            self.memory.append(descriptor)
        self.take()

    def take(self, tags=()):
        if self.device is not None:
            self.device.take(tags)
        for descriptor in self.memory:
            os.ftruncate(descriptor, self.knobs.memory)
            os.posix_fallocate(descriptor, 0, self.knobs.memory)

    def give(self):
        if self.device is not None:
            self.device.give()
        for descriptor in self.memory:
            os.ftruncate(descriptor, 0)

    def listen(self):
        self.port = int(self.options["port"]) + (100 if self.knobs.bind_other else 0)
        self.listener = listener("127.0.0.1", self.port, 512)
        self.poll.register(self.listener, select.POLLIN)

    def double_fork(self, kind):
        if os.fork():
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        keep = set(self.memory if "hold" in kind else ()) | ({self.listener.fileno()} if "port" in kind else set())
        for descriptor in (*self.memory, self.listener.fileno()):
            if descriptor not in keep:
                os.close(descriptor)
            else:
                os.set_inheritable(descriptor, True)
        environment = {} if "bare" in kind else dict(os.environ)
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-E", "-c", "import time; time.sleep(600)"], environment)

    def meet(self):
        """All members of one life at one rendezvous: the head answers nobody before everybody is there."""
        if self.count == 1:
            return
        host, _, port = self.options["dist-init-addr"].partition(":")
        if self.rank == 0:
            self.rendezvous = listener(host, int(port), 64)
            self.poll.register(self.rendezvous, select.POLLIN)
            return
        while True:
            try:
                self.peers.append(connected(host, int(port), 5))
                self.poll.register(self.peers[0], select.POLLIN)
                return
            except OSError:
                time.sleep(0.01)

    def announce(self):
        if self.scripts:
            pipeline, _, rank = self.group.split("/")
            path = f"{self.scripts}/live/{pipeline}.{rank}.{self.rank}.{self.life}"
            os.makedirs(f"{self.scripts}/live", exist_ok=True)
            with open(path + ".new", "w", encoding="utf-8") as file:
                file.write(dumps({"pid": os.getpid(), "port": self.port}))
            os.rename(path + ".new", path)

    @property
    def ready(self):
        together = self.rank > 0 or len(self.peers) >= self.count - 1
        return together and time.monotonic() >= self.ready_at

    # -- the loop

    def run(self):
        while True:
            now = time.monotonic()
            if 0 <= self.knobs.exit_after <= now - self.born:
                os._exit(self.knobs.exit_code)
            wait = self.work(now)
            for fd, _ in self.poll.poll(max(0.0, min(wait, 0.5)) * 1000):
                if fd == self.listener.fileno():
                    self.accept()
                elif self.rendezvous is not None and fd == self.rendezvous.fileno():
                    peer = self.rendezvous.accept()
                    self.peers.append(peer)
                    self.poll.register(peer, select.POLLIN)
                elif any(peer.fileno() == fd for peer in self.peers):
                    self.hear(fd)
                else:
                    self.move(self.connections[fd])

    def hear(self, fd):
        """From the head: give the memory back, or take it. Nobody waits for the others: the head answers when it is done itself."""
        said = b""
        with suppress(OSError):
            said = os.read(fd, 1)
        if not said:
            self.poll.unregister(fd)
            self.stuck = True
        elif said == b"g" and self.knobs.release != "noop":
            self.give()
        elif said == b"t":
            self.take()
        elif said == b"c":
            self.waiting -= 1
            self.acknowledged = self.waiting == 0
        elif said == b"C":
            os.write(fd, b"c")

    def together(self):
        """Whether all members have made this step: asks them first, and is true when the last has answered."""
        if self.count == 1 or self.acknowledged:
            self.acknowledged = False
            return True
        if not self.waiting:
            self.waiting = len(self.peers)
            self.tell(b"C")
        return False

    def tell(self, word):
        for peer in self.peers if self.rank == 0 else ():
            with suppress(OSError):
                peer.send(word)

    def accept(self):
        try:
            sock = self.listener.accept()
        except OSError:
            return
        if self.knobs.health == "refuse" or self.knobs.generate == "refuse":
            sock.close()
            return
        sock.setblocking(False)
        sock.hurry()
        self.connections[sock.fileno()] = Connection(sock)
        self.poll.register(sock, select.POLLIN)

    def move(self, connection):
        try:
            if connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
            else:
                data = connection.sock.recv(1 << 20)
                if not data:
                    self.drop(connection)
                    return
                connection.read += data
                self.parse(connection)
        except BlockingIOError:
            pass
        except OSError:
            self.drop(connection)
            return
        self.watch(connection)

    def watch(self, connection):
        if connection.sock.fileno() < 0:
            return
        if connection.closing and not connection.out:
            self.drop(connection)
            return
        self.poll.modify(connection.sock, select.POLLIN | (select.POLLOUT if connection.out else 0))

    def drop(self, connection, reset=False):
        fd = connection.sock.fileno()
        if fd < 0:
            return
        if reset:
            connection.sock.linger(0)
        self.poll.unregister(fd)
        del self.connections[fd]
        connection.request = None
        connection.sock.close()

    def parse(self, connection):
        head, separator, rest = connection.read.partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        connection.read = rest[length:]
        method, path, _ = lines[0].split(" ")
        body = loads(rest[:length]) if length else {}
        path = path.partition("?")[0]
        self.asked[path] = self.asked.get(path, 0) + 1
        if self.knobs.die_at == path:
            die()
        if self.knobs.hang_at == path:
            self.stuck = True
            return
        self.route(connection, method, path, body, headers.get("authorization", ""))
        if self.knobs.die_after == path and not connection.request:
            if connection.out:
                connection.sock.send(connection.out)
            die()

    def reply(self, connection, status, body=b"", kind="application/json"):
        if not isinstance(body, bytes):
            body = dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.out += head.encode() + body
        connection.closing = True
        self.push(connection)

    def push(self, connection):
        with suppress(BlockingIOError, OSError):
            connection.out = connection.out[connection.sock.send(connection.out) :]
        self.watch(connection)

    def later(self, seconds, what):
        self.timers.append((time.monotonic() + seconds, what))

    # -- what it is asked

    def route(self, connection, method, path, body, authorization):
        if path == "/script":
            self.spell(body, body.pop("for", 0.0), body.pop("nap", 0.0))
            self.reply(connection, 200, {"asked": self.asked, "tokens": self.tokens, "canaries": self.canaries})
            return
        if path in ("/health", "/health_generate"):
            self.health(connection, getattr(self.knobs, path[1:]), path)
            return
        if self.rank > 0:  # SGLang's dummy server
            self.reply(connection, 200)
            return
        if self.key and authorization != f"Bearer {self.key}" and not self.knobs.open_to_all:
            self.reply(connection, 401, {"error": "Unauthorized"})
            return
        if not self.ready:
            self.reply(connection, 503)
            return
        known = ROUTES.get(path)
        if known is None:
            self.reply(connection, 404, {"detail": "Not Found"})
        else:
            known(self, connection, body)

    def health(self, connection, mode, path):
        if self.rank > 0:
            self.reply(connection, 200)
        elif mode in ("503", "hang", "reset"):
            self.fault(connection, mode)
        elif mode == "slow":
            self.later(self.knobs.slow, lambda: self.reply(connection, 200))
        elif not self.ready:
            self.reply(connection, 503)
        elif path == "/health_generate" and mode != "lie":
            connection.request = Request("health", {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}})
            connection.request.health = True  # it waits for a token as any request does
        else:
            self.reply(connection, 200)

    def fault(self, connection, mode):
        if mode == "reset":
            self.drop(connection, reset=True)
        elif mode != "hang":
            self.reply(connection, int(mode), {"error": {"message": "a fault of the script"}})

    def model_info(self, connection, body):
        self.reply(connection, 200, {"model_path": self.model, "weight_version": self.version})

    def server_info(self, connection, body):
        running = sum(1 for other in self.connections.values() if other.request)
        if not self.stuck:
            states = [{"num_running_reqs": running, "num_waiting_reqs": 0}]
            room = int(self.options.get("max-total-tokens", 0)) - self.knobs.pool_lacks
            said = {"version": "0.5.23", "internal_states": states, "weight_version": self.version, "max_total_num_tokens": room}
            self.reply(connection, 200, said)

    def loads(self, connection, body):
        running = sum(1 for other in self.connections.values() if other.request)
        self.reply(connection, 200, {"loads": [{"num_running_reqs": running, "num_waiting_reqs": 0}]})

    def generate(self, connection, body):
        if self.knobs.generate not in ("ok", "hang"):
            self.fault(connection, self.knobs.generate)
            return
        connection.request = Request(body.get("rid", ""), body)
        if len(self.canaries) < 2:
            self.canaries.append(body.get("sampling_params"))
        if connection.request.stream:
            connection.out += b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            self.push(connection)

    def abort(self, connection, body):
        for other in list(self.connections.values()):
            request = other.request
            if request and not self.paused and (body.get("abort_all") or request.rid.startswith(body.get("rid") or "?")):
                request.aborted = True
        self.reply(connection, 200)

    def pause(self, connection, body):
        mode = body.get("mode", "abort")
        self.paused = True
        if mode == "abort":
            for other in list(self.connections.values()):
                if other.request:
                    other.request.aborted = True
        self.reply(connection, 200, {"status": "ok"})

    def resume(self, connection, body):
        self.paused = False
        self.reply(connection, 200, {"status": "ok"})

    def flush(self, connection, body):
        busy = not self.paused and any(other.request for other in self.connections.values())
        self.reply(connection, 400 if busy else 200, b"Flush cache failed." if busy else b"Cache flushed.", "text/plain")

    def release(self, connection, body):
        tags = set(body.get("tags") or ("weights", "kv_cache", "cuda_graph"))
        if tags & self.released or (not self.paused and any(other.request for other in self.connections.values())):
            sys.stderr.write("release_memory_occupation out of turn\n")
            die()
        self.released |= tags
        self.tell(b"g")
        if self.knobs.release == "late":
            self.later(self.knobs.late, self.give)
        elif self.knobs.release != "noop":
            self.give()
        self.reply(connection, 200, b"null")

    def resume_memory(self, connection, body):
        tags = set(body.get("tags") or ("weights", "kv_cache", "cuda_graph"))
        if not tags <= self.released:
            sys.stderr.write("resume_memory_occupation of what is not released\n")
            die()
        self.released -= tags
        self.tell(b"t")
        self.take(tags)
        self.reply(connection, 200, b"null")

    def update(self, connection, body):
        if self.knobs.update == "400" or not os.path.isdir(body["model_path"]):
            self.reply(connection, 400, {"success": False, "message": "a fault of the script, or no folder"})
            return
        self.version = str(int(body["weight_version"]) - 1) if self.knobs.update == "wrong" else body["weight_version"]
        self.model = body["model_path"]
        self.reply(connection, 200, {"success": True, "message": "ok"})

    def checksum(self, connection, body):
        sum_ = f"{zlib.crc32(self.version.encode()):08x}"
        self.reply(connection, 200, {"success": True, "message": "", "ranks": [], "per_engine_checksum": sum_})

    # -- computing

    def work(self, now):
        """One token for each request that is due; seconds until there is more to do."""
        for due, what in [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove((due, what))
            what()
        wait = min([timer[0] - now for timer in self.timers], default=60.0)
        if self.knobs.exit_after >= 0:
            wait = min(wait, self.born + self.knobs.exit_after - now)
        computing = not (self.paused or self.stuck or self.knobs.generate == "hang")
        due = computing and any(other.request and other.request.due <= now for other in self.connections.values())
        step = due and self.together()
        for connection in list(self.connections.values()):
            request = connection.request
            if request is None:
                continue
            if request.aborted:
                self.end(connection, {"type": "abort", "message": "Aborted"})
            elif not computing:
                continue  # nothing ends it but an abort of before
            elif request.due <= now:
                if step:
                    self.token(connection, request, now)
                    wait = min(wait, self.knobs.token_delay)
            else:
                wait = min(wait, request.due - now)
        return wait

    def token(self, connection, request, now):
        if self.released:
            sys.stderr.write("a forward pass on memory that was given back\n")
            die(SIGBUS)
        self.tokens += 1
        if 0 <= self.knobs.die_at_token <= self.tokens:
            die()
        request.step(self.version)
        request.due = now + self.knobs.token_delay
        if len(request.tokens) >= request.limit:
            self.end(connection, {"type": "length", "length": request.limit})
        elif request.stream:
            self.event(connection, request.answer(self.version, None, self.since(request)))
            request.sent = len(request.tokens)

    def since(self, request):
        return request.sent if "incremental-streaming-output" in self.options else 0

    def event(self, connection, answer):
        connection.out += b"data: " + dumps(answer).encode() + b"\n\n"
        self.push(connection)

    def end(self, connection, reason):
        request, connection.request = connection.request, None
        if request.health:
            self.reply(connection, 200)
            return
        answer = request.answer(self.version, reason, self.since(request) if request.stream else 0)
        if request.stream:
            connection.out += b"data: " + dumps(answer).encode() + b"\n\ndata: [DONE]\n\n"
            connection.closing = True
            self.push(connection)
        else:
            self.reply(connection, 200, answer)


ROUTES = {
    "/model_info": Engine.model_info,
    "/server_info": Engine.server_info,
    "/v1/loads": Engine.loads,
    "/generate": Engine.generate,
    "/abort_request": Engine.abort,
    "/pause_generation": Engine.pause,
    "/continue_generation": Engine.resume,
    "/flush_cache": Engine.flush,
    "/release_memory_occupation": Engine.release,
    "/resume_memory_occupation": Engine.resume_memory,
    "/update_weights_from_disk": Engine.update,
    "/weights_checker": Engine.checksum,
}


def parsed(argv):
    """`--name value` pairs; a name without a value is a switch."""
    options = {}
    words = list(argv)
    while words:
        name = words.pop(0).removeprefix("--")
        options[name] = words.pop(0) if words and not words[0].startswith("--") else ""
    return options


def main(argv):
    arguments = parsed(argv)
    api_key = ""
    if "config" in arguments:
        with open(arguments["config"], encoding="utf-8") as config:
            api_key = loads(config.read())["api-key"]
    engine = Engine(arguments, os.environ.get("TRAINSHED_TAG", ""), api_key)
    engine.start()
    engine.run()
