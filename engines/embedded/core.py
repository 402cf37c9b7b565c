"""The core is the engine without HTTP and without threads: everything that touches the model, called by the compute thread only.

It behaves as SGLang 0.5.23 does, its refusals (`Refusal`) and its deaths (`Death`) included.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from trainshed.virtual_gpu import Device, DeviceKind

from engines.embedded.architecture import Architecture, UnsupportedModel, check_exact, read_architecture
from engines.embedded.batching import Batch, Decode, Request, Span
from engines.embedded.memory import WEIGHTS, EngineMemory, MisusedMemory
from engines.embedded.model import SlotModel
from engines.embedded.sampling import Draw, Known, choose
from engines.embedded.snapshot import BadSnapshot, load_snapshot


class Refusal(Exception):
    """The call cannot be done now; nothing has changed. `status` is the HTTP status it is answered with."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Death(Exception):
    """The call is one that SGLang does not survive, nor do we: the process must end now, without an answer."""


class Pausing(Enum):
    RETRACT = "retract"
    IN_PLACE = "in_place"


@dataclass(frozen=True)
class Answer:
    """What a request has come to: a copy, safe in any thread. `finish` is None while it runs."""

    rid: str
    output: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_logprobs: tuple[tuple[int, float], ...]
    spans: tuple[Span, ...]
    retractions: int
    version: str
    finish: dict[str, Any] | None


class Core:
    """The core has one model, its slots and its device memory."""

    def __init__(self, folder: Path, device: Device, slots: int, context: int, version: str, decode: Decode) -> None:
        """Load the weights of `folder` as `version`. Raises UnsupportedModel, BadSnapshot, NotExact, OSError."""
        self.architecture: Architecture = read_architecture(folder)
        exact = device.kind is not DeviceKind.CUDA
        problems = check_exact(self.architecture, slots) if exact else []
        if problems:
            raise UnsupportedModel(f"{folder}: not bit-exact on a CPU: {'; '.join(problems)}")
        torch.set_num_threads(1)
        dtype = torch.bfloat16 if device.kind is DeviceKind.CUDA and self.architecture.dtype == "bfloat16" else torch.float32
        self.memory = EngineMemory(device, self.architecture, dtype, slots, context)
        self._model = SlotModel(self.architecture, self.memory.weights, self.memory.kv)
        load_snapshot(folder, self.memory.weights)
        if exact:
            self._model.self_check()
        self.batch = Batch(slots, decode)
        self.version = version
        self.pausing: Pausing | None = None
        self.invalid: str | None = None  # why the weights must not be used
        self.steps = 0
        self.outbox: list[Answer] = []  # for the clients; whoever runs the core empties it

    @property
    def busy(self) -> bool:
        """Return whether a step would do something."""
        return self.batch.busy and self.pausing is None

    @property
    def idle(self) -> bool:
        """Return SGLang's `is_fully_idle`, which ignores the queue while generation is paused."""
        return not self.batch.running and (self.pausing is not None or not self.batch.waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises Refusal while the weights are not to be used."""
        if self.invalid is not None:
            raise Refusal(self.invalid, 503)
        self.batch.add(request)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one token for every slot; what has ended by it goes to the outbox."""
        feeds = self.batch.feeds()
        for slot in self.batch.fresh:
            self._model.clear(slot)
        self.batch.fresh.clear()
        count = len(self.batch.slots)
        tokens, positions = [0] * count, [0] * count
        rows: list[Draw | Known | None] = [None] * count
        for feed in feeds:
            tokens[feed.slot], positions[feed.slot] = feed.token, feed.position
            rows[feed.slot] = feed.row
        logits = self._model.step(tokens, positions)
        self.steps += 1
        chosen: Sequence[int] = ()
        logprobs: Sequence[float] = ()
        if any(row is not None for row in rows):
            chosen, logprobs = choose(logits, rows)
        self.outbox += [self.answer(request) for request in self.batch.took(feeds, chosen, logprobs, self.version)]

    def show_streams(self) -> None:
        """Put into the outbox how far every running request has come whose stream is due for an event."""
        self.outbox += [self.answer(request) for request in self.batch.running if request.show()]

    def abort(self, matches: Callable[[str], bool]) -> None:
        """End every request whose id matches; their answers so far go to the outbox."""
        self.outbox += [self.answer(request) for request in self.batch.abort(matches)]

    def pause(self, mode: Pausing) -> None:
        self.pausing = mode
        if mode is Pausing.RETRACT:
            self.batch.retract()

    def go_on(self) -> None:
        self.pausing = None

    def flush(self, patient: bool = False) -> bool:
        """Return whether nothing runs or waits (there is no prefix cache to flush). A `patient` caller waits for retracted requests, too."""
        return self.idle and not (patient and self.batch.waiting)

    def release(self, tags: Iterable[str]) -> None:
        """Give device memory back. Raises Death while busy, or for what is released already."""
        if not self.idle:
            raise Death("release_memory_occupation should be called only when the server is idle")
        try:
            self.memory.release(tags)
        except MisusedMemory as error:
            raise Death(str(error)) from error
        if WEIGHTS in self.memory.released:
            self.invalid = "the weights were released and have not been loaded since (update_weights_from_disk)"

    def resume(self, tags: Iterable[str]) -> None:
        """Take device memory again. Raises Death for what is not released, or when there is no memory."""
        try:
            self.memory.resume(tags)
        except (MisusedMemory, OSError, RuntimeError) as error:
            raise Death(str(error)) from error

    def load(self, folder: Path, version: str | None, flush: bool) -> tuple[int, str]:
        """Load weights from `folder`; return how many requests were paused meanwhile, and a note. Raises Refusal.

        After a failure the weights are mixed or old: the engine is poisoned and takes no request until a load succeeds.
        """
        if WEIGHTS in self.memory.released:
            raise Death("update_weights_from_disk into weights that are released")
        try:
            self._check_same(folder)
            load_snapshot(folder, self.memory.weights)
        except (BadSnapshot, UnsupportedModel, OSError) as error:
            self.invalid = f"poisoned: a weight update failed ({error}); load complete weights or discard this engine"
            raise Refusal(self.invalid) from error
        self.invalid = None
        if version is not None:
            self.version = version
        paused = len(self.batch.running) + len(self.batch.waiting) if self.pausing is not None else 0
        if flush and not self.idle:
            raise Refusal("Weights were updated, but the cache was not flushed.")
        return paused, "Succeeded to update model weights."

    def _check_same(self, folder: Path) -> None:
        """Check that a snapshot which brings a config brings one of the same tensors. Raises BadSnapshot."""
        if (folder / "config.json").exists() and read_architecture(folder).tensors() != self.architecture.tensors():
            raise BadSnapshot(f"{folder} holds a model of another shape than the one that is loaded")

    def state(self) -> dict[str, Any]:
        """Return counts for `/server_info` and `/v1/loads`."""
        running, waiting = len(self.batch.running), len(self.batch.waiting)
        context = self._model.context
        used = sum(request.fed for request in self.batch.running)
        return {
            "num_running_reqs": running,
            "num_waiting_reqs": waiting,
            "max_running_requests_per_dp": len(self.batch.slots),
            "num_used_tokens": used,
            "max_total_num_tokens": len(self.batch.slots) * context,
            "token_usage": round(used / (len(self.batch.slots) * context), 4),
            "is_fully_idle": self.idle,
            "paused": None if self.pausing is None else self.pausing.value,
            "released": sorted(self.memory.released),
            "weights": self.invalid or "valid",
            "held_bytes": self.memory.held,
            "steps": self.steps,
        }

    def answer(self, request: Request) -> Answer:
        return Answer(
            rid=request.rid,
            output=tuple(request.output),
            logprobs=tuple(request.logprobs),
            prompt_logprobs=tuple(sorted(request.prompt_logprobs.items())),
            spans=tuple(Span(span.version, span.start, span.end) for span in request.spans),
            retractions=request.retractions,
            version=self.version,
            finish=request.finish,
        )
