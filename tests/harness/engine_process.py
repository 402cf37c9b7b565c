"""A real embedded engine in a process of its own, for tests: from a forkserver that has imported torch, so that one costs 0.1 s."""

import json
import multiprocessing
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

KEY = "test-key"


def _serve(argv: list[str], log: str, key: str) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["TRAINSHED_API_KEY"] = key
    from engines.embedded.__main__ import main

    main(argv)


class EngineProcess:
    """`url`, `pid`, and calls without ceremony."""

    def __init__(self, model: Path, log: Path, *, gpu: str = "virtual:0", slots: int = 8, context: int = 64, key: str = KEY) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.key, self.log = f"http://127.0.0.1:{port}", key, log
        argv = ["--model", str(model), "--port", str(port), "--gpu", gpu, "--slots", str(slots), "--context", str(context)]
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(["engines.embedded.__main__"])
        self.process = start.Process(target=_serve, args=(argv, str(log), key), daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                self.get("/health")
            except urllib.error.URLError:
                time.sleep(0.02)
                continue
            return

    def call(self, method: str, path: str, body: Any = None, timeout: float = 20) -> tuple[int, Any]:
        """Status, and the body as JSON where it is JSON."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                raw, status = reply.read().decode(), reply.status
        except urllib.error.HTTPError as error:
            raw, status = error.read().decode(), error.code
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def get(self, path: str) -> Any:
        return self.call("GET", path)[1]

    def post(self, path: str, body: Any = None, timeout: float = 20) -> Any:
        status, answer = self.call("POST", path, {} if body is None else body, timeout)
        assert status == 200, answer
        return answer

    def generate(self, prompt: list[int], seed: int = 0, most: int = 8, **options: Any) -> Any:
        params = {"max_new_tokens": most, "sampling_seed": seed, **options}
        return self.post("/generate", {"input_ids": prompt, "sampling_params": params, "return_logprob": True})

    def stream(self, body: Any) -> Iterator[Any]:
        """The chunks of a streaming `/generate`, one by one; asserts that it ended as it should."""
        request = urllib.request.Request(
            self.url + "/generate", json.dumps({**body, "stream": True}).encode(), {"Authorization": f"Bearer {self.key}"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            for line in reply:
                if line.startswith(b"data: "):
                    if line.strip() == b"data: [DONE]":
                        return
                    yield json.loads(line[6:])
        raise AssertionError("the stream ended without [DONE]")

    def held(self, gpu: int = 0) -> int:
        """Bytes of virtual GPU `gpu`, measured from outside."""
        total = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # a descriptor that was closed meanwhile
                if os.readlink(entry) == f"/memfd:trainshed-gpu-{gpu} (deleted)":
                    total += entry.stat().st_blocks * 512
        return total

    def exit_code(self, within: float = 5.0) -> int | None:
        self.process.join(within)
        return self.process.exitcode


@contextmanager
def engine_process(model: Path, log: Path, **options: Any) -> Iterator[EngineProcess]:
    engine = EngineProcess(model, log, **options)
    try:
        engine.wait_ready()
        yield engine
    finally:
        engine.process.kill()
        engine.process.join(10)


def tokens_and_logprobs(answer: Any) -> tuple[list[int], list[float]]:
    return answer["output_ids"], [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
