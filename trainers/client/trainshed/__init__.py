"""This is what a training script imports: `import trainshed`, then `pipeline = trainshed.connect()`.

A script is started by Trainshed once a GPU (a *rank*), with torchrun's variables and a descriptor (`TRAINSHED_FD`) on which it talks to
the supervisor. The supervisor lends GPUs: inside a *lease* the GPUs are the trainer's and empty; outside, other pipelines' engines compute
on them. A *rollout* says how many samples are wanted; engines are woken for it, and the gateway at `pipeline.url` hands the requests out.
`publish` makes the next *version* of the weights, which every engine loads before it serves again.

    import trainshed

    pipeline = trainshed.connect()
    with pipeline.lease("init"):
        model, optimizer = build()
        pipeline.resident(model, optimizer)           # moved on to the GPU at each lease, off it at its end
        load(pipeline.checkpoint_path)                # None on a fresh start
        pipeline.restore(model.state_dict)            # after a restart: publishes what was restored
    for step in range(pipeline.steps_done, pipeline.steps):
        with pipeline.rollout(target=len(prompts)) as rollout:
            samples = rollout.generate(prompts, max_new_tokens=8)
        with pipeline.lease("train"):
            loss = train(samples)
            pipeline.publish(model.state_dict)
        pipeline.report(step, reward=reward, loss=loss)
        pipeline.checkpoint(step, save(step))

Ranks. Every rank runs the same script and makes the same calls in the same order. Rank 0's calls decide; the others wait for the
supervisor's answer on their own descriptor, never in a collective. All calls may be made from several threads.

Life. One thread reads the descriptor and hands each answer to the call that waits for it (`_Channel`). A rollout has one thread for each
request to the gateway (`_Fetch`), which asks again, under the same sample numbers, until every sample is there: lost connections and
restarted gateways are not seen by the script. When the supervisor is gone, calls raise SupervisorGone, and the process ends itself 30 s later.

This file is the whole client: the standard library alone, Python >= 3.9, good also when it is copied elsewhere without its folder
(all but `resident()`). Beside it lie `resident`, `storages` and `virtual_gpu` (what `pipeline.resident` needs; imported at its first
use), `launch` (runs `entry = "module:function"`), `aio` (the same calls to be
awaited on asyncio) and `trl` (TRL's trainers).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import http.client
import json
import math
import os
import secrets
import shutil
import socket
import stat
import struct
import sys
import threading
import time
import urllib.parse
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Union

# --- the public API: connect, Pipeline, Lease, Rollout, Sample, errors -----------------------------------------------------------------

_connected: Pipeline | None = None
_connecting = threading.Lock()


def connect() -> Pipeline:
    """Returns the pipeline of this process; every call returns the same one. Raises NotSupervised.

    It is reached over the descriptor that this process has inherited, or where a launcher has made it (`processes = "one"`) over a socket.
    """
    global _connected  # noqa: PLW0603  one descriptor, one pipeline, one process
    with _connecting:
        if _connected is None:
            number, path = os.environ.get("TRAINSHED_FD"), os.environ.get("TRAINSHED_SOCKET")
            rank = int(os.environ.get("RANK", "0"))
            if number is not None:
                _connected = Pipeline(_inherited(int(number)), rank, exit_when_gone=True)
            elif path is not None:
                shown = {"world_size": int(os.environ.get("WORLD_SIZE", "1")), "token": os.environ.get("TRAINSHED_TOKEN", "")}
                _connected = Pipeline(_dialled(path), rank, exit_when_gone=True, **shown)
            else:
                raise NotSupervised("TRAINSHED_FD is not set: start this script from a [pipeline.trainer] of a Trainshed file")
        return _connected


class Pipeline:
    """A pipeline as its trainer sees it; `connect()` makes it. The public attributes do not change in this life of the trainer:

    `name`, `rank`, `world_size`, `seed`, `steps` (to do in all), `steps_done` (first step to do), `options` (from the TOML file),
    `model` (path of version 0), `url` (the gateway), `api_key` (its key; None where it asks for none), `directory` (for this trainer's
    files), `checkpoint_path` (None on a fresh start), `gpus` (`virtual:0` or `cuda:0` …) and `device` (what torch calls the first of
    them: `cpu` for a virtual one).
    """

    def __init__(self, sock: socket.socket, rank: int = 0, exit_when_gone: bool = False, **shown: Any) -> None:
        self._channel = _Channel(sock, exit_when_gone)
        self._channel.send("hello", rank=rank, **shown)
        welcome = self._channel.wait("hello", 0, _HELLO_S)
        if welcome["type"] == "refused":
            self.close()
            raise NotSupervised(welcome["reason"])
        self.name: str = welcome["pipeline"]
        self.rank: int = welcome["rank"]
        self.world_size: int = welcome["world_size"]
        self.seed: int = welcome["seed"]
        self.steps: int = welcome["steps"]
        self.steps_done: int = welcome["steps_done"]
        self.model: str = welcome["model"]
        self.url: str = welcome["url"]
        self.api_key: str | None = os.environ.get("TRAINSHED_API_KEY") or None
        self.directory = Path(welcome["directory"])
        self.gpus: tuple[str, ...] = tuple(welcome["gpus"])
        self._roles = frozenset(welcome.get("roles") or ("init", "train"))
        checkpoint = welcome.get("checkpoint_path")
        self.checkpoint_path: Path | None = None if checkpoint is None else Path(checkpoint)
        self.options: dict[str, Any] = dict(welcome.get("options") or {})
        self.device = next((gpu for gpu in self.gpus if not gpu.startswith("virtual:")), "cpu")
        self._weights = Path(welcome["weights"])
        self._version_before: int = welcome.get("version", 0)
        self._published: int = self._version_before
        self._guard = threading.Lock()
        self._publishing = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._warned: set[str] = set()
        self._next_rollout = self._after_newest = self.steps_done
        self._evaluations = (-1, 0)  # the step before which the newest was, and how many there were
        self._lease: Lease | None = None
        self._residents = _Residents(self.gpus, self.device)

    @property
    def stopping(self) -> bool:
        """Tells whether the supervisor is stopping: save what must be saved and return; a TERM follows. Calls that wait are refused (`stopping`)."""
        return self._channel.stopping is not None

    def _holds_own_gpu(self, roles: Iterable[str]) -> bool:
        """Tells whether a lease of these roles holds this rank's own GPU."""
        return not self._roles.isdisjoint(roles)

    def lease(self, *roles: str) -> Lease:
        """Leases the GPUs of all these roles for the length of a `with`. Raises LeaseRefused (NestedLease at once, without asking)."""
        return Lease(self, roles)

    def resident(self, *things: Any) -> None:
        """Keeps these models (`parameters()`) and optimizers (`state`) on the GPU inside leases and in host memory outside."""
        self._residents.add(things)

    def rollout(
        self,
        target: int | None = None,
        number: int | None = None,
        *,
        trajectories: int | None = None,
        per_rank: bool = False,
        evaluation: bool = False,
    ) -> Rollout:
        """Demands `target` samples for the length of a `with`. `number` seeds them: by default the trainer's step (`steps_done`, then + 1 each).

        With `trajectories` instead of a target it demands so many of them: engines are kept for one between its samples, while a tool runs,
        until it has ended (`Rollout.trajectory`). An `evaluation` has a space of numbers, and so of seeds, of its own; its number is by default
        made of the step that comes next, so that it is the same after a resume.

        Every rank asks for the same samples and gets all of them. With `per_rank` each rank asks for samples of its own, with a target of its
        own, and gets these alone; the rollout is open from rank 0's `with` until every rank has left it.
        Raises ValueError for a target below 1, RolloutRefused at the `with`, and at its end where ranks have asked for different samples.
        """
        wanted = trajectories if target is None else target
        if wanted is None or (target is not None and trajectories is not None):
            raise ValueError("a rollout wants either a target of samples or a number of trajectories")
        if wanted < 1:
            raise ValueError(f"a rollout wants at least one sample, not {wanted}")
        with self._guard:
            if number is None and evaluation:
                step, count = self._evaluations
                count = count if step == self._after_newest else 0
                self._evaluations = (self._after_newest, count + 1)
                number = self._after_newest * _EVALUATIONS_A_STEP + count
            elif number is None:
                number, self._next_rollout = self._next_rollout, self._next_rollout + 1
            if not evaluation:
                self._after_newest = max(self._after_newest, number + 1)
        return Rollout(self, wanted, number, trajectories=trajectories is not None, per_rank=per_rank, evaluation=evaluation)

    def publish(self, weights: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, partial: bool = False) -> int:
        """Publishes the next weight version and returns its number, which is recorded then. Every rank calls it.

        `weights` maps names to torch tensors of any device, or is a callable that returns such a mapping; every rank calls it (it may be
        collective). The names, shapes and kinds of number are those of the model's files, but a float's width may differ, and what DDP,
        torch.compile, FSDP and peft put into names is left out here. All of the model's tensors are there; or `partial`, and the others are
        taken from the version before, which is the model itself after a resume.

        Raises PublishFailed on every rank (on rank 0 NoRoom when the folder is full); then the version before stays, and nothing has failed.
        Its `code` is `does_not_fit`, `incomplete`, `not_finite` (NaN or infinite values), `sharded` (a DTensor: `full_tensor()` is called on
        every rank), `unmerged_adapter` (of LoRA), `no_room` or `bad_snapshot`.
        """
        with self._publishing:
            call = self._next_number("publish")
            state = weights() if callable(weights) else weights
            failure: PublishFailed | None = None
            if self.rank == 0:
                name = f"snapshot-{call}-{secrets.token_hex(4)}"
                failure = self._write(self._weights / name, state, partial)
                why = {} if failure is None else {"code": failure.code, "reason": _as_text(failure.reason)}
                self._channel.send("publish", call=call, name=name, **why)  # a failure, too: every rank is told of it
            answer = self._channel.wait("publish", call)
            if failure is None and answer["type"] != "refused":
                self._published = int(answer["version"])
                return self._published
        raise failure or PublishFailed(answer["code"], answer["reason"])

    def _write(self, folder: Path, state: Mapping[str, Any], partial: bool) -> PublishFailed | None:
        """Writes a snapshot; returns why it could not be written, and then nothing of it is left."""
        try:
            state, renamed = unwrapped(state, Path(self.model))
            if renamed:
                self._warn_once("wrappings", renamed)
            before = self._weights / f"v{self._published}"
            base = before if before.is_dir() else Path(self.model)
            write_snapshot(folder, state, Path(self.model), base if partial else None)
        except PublishFailed as error:
            failure = error
        except Exception as error:
            failure = PublishFailed("bad_snapshot", f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        else:
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return failure

    def restore(self, weights: Callable[[], Mapping[str, Any]], *, partial: bool = False) -> int:
        """Publishes what was restored, after a restart, and returns its version; on a fresh start does nothing and returns 0."""
        if self.steps_done == 0 and self.checkpoint_path is None and self._version_before == 0:
            return 0
        return self.publish(weights, partial=partial)

    def checkpoint(self, step: int, path: str | os.PathLike[str]) -> None:
        """Says that the state after step `step` is saved at `path` (on rank 0); returns when that is recorded. Raises Refused.

        A restart then has `steps_done = step + 1` and `checkpoint_path = path`.
        """
        if self.rank == 0:
            self._channel.send("checkpoint", step=step, path=os.path.abspath(path))
        answer = self._channel.wait("checkpoint", step)
        if answer["type"] == "refused":
            raise Refused(answer["code"], answer["reason"])

    def report(self, step: int, **metrics: Any) -> None:
        """Reports figures of one step; rank 0's are taken, and nobody waits for an answer. Never raises for a figure.

        A figure that is not finite is reported as `<name>_not_finite = 1`. What is no number, the 65th figure and those after it, and
        names of more than 128 characters are left out, which is said once for each name on stderr.
        """
        if self.rank != 0:
            return
        sent: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                figure = float(value)
            except Exception as error:  # whatever a tensor, an array or a string raises
                self._warn_once(name, f"report leaves out {name[:128]!r}: no number ({type(error).__name__}: {str(error)[:200]})")
                continue
            key, figure = (name, figure) if math.isfinite(figure) else (f"{name}_not_finite", 1.0)
            if len(sent) == MAX_FIGURES or not 0 < len(key) <= MAX_NAME:
                why = f"a report holds at most {MAX_FIGURES} figures with names of at most {MAX_NAME} characters"
                self._warn_once(name, f"report leaves out {name[:128]!r}: {why}")
                continue
            sent[key] = figure
        self._channel.send("report", step=step, metrics=sent)

    def close(self) -> None:
        """Closes the channel (the process's exit does it too)."""
        self._channel.close()

    def _warn_once(self, subject: str, text: str) -> None:
        """Writes a warning on stderr, the first time for this subject (and for the first 100 subjects)."""
        with self._guard:
            if subject in self._warned or len(self._warned) == 100:
                return
            self._warned.add(subject)
        sys.stderr.write(f"trainshed: {text}\n")

    def _next_number(self, kind: str) -> int:
        with self._guard:
            number = self._numbers.get(kind, 0)
            self._numbers[kind] = number + 1
            return number

    def _hold(self, lease: Lease) -> None:
        with self._guard:
            if self._lease is not None:
                raise NestedLease
            self._lease = lease

    def _release(self, lease: Lease) -> None:
        with self._guard:
            if self._lease is lease:
                self._lease = None


class Lease:
    """A grant of GPUs: inside `with pipeline.lease("train"):` the GPUs of these roles are this trainer's and were measured empty."""

    def __init__(self, pipeline: Pipeline, roles: Sequence[str]) -> None:
        if not roles:
            raise ValueError('a lease names its roles: pipeline.lease("train")')
        self.roles = tuple(roles)
        self._pipeline = pipeline
        self._call = -1

    def __enter__(self) -> Lease:
        self._pipeline._hold(self)
        try:
            self._ask("request_lease", self.roles)
        except BaseException:
            self._pipeline._release(self)
            raise
        try:
            self._onload()
        except BaseException:
            self._leave(_LEAVE_S)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._leave(None)
            return
        # The body's exception matters more than the answer: other ranks may never come to their end of this lease.
        with contextlib.suppress(SupervisorGone, TimeoutError):
            self._leave(_LEAVE_S)

    def become(self, *roles: str) -> None:
        """Exchanges the grant for one of these roles in one event. Raises LeaseRefused; then the old grant is still held.

        GPUs that only the old grant has are given up from the moment of asking: residents leave this rank's GPU before, if the new grant does
        not have it, and come back if the exchange is refused.
        """
        if self._pipeline._lease is not self:
            raise LeaseRefused("out_of_order", "this lease is not held")
        if not self._pipeline._holds_own_gpu(roles):
            self._pipeline._residents.leave()
        try:
            self._ask("exchange_lease", tuple(roles))
        except LeaseRefused:
            self._onload()
            raise
        self._onload()

    def _onload(self) -> None:
        """Moves residents on to this rank's GPU, if the lease holds it."""
        if self._pipeline._holds_own_gpu(self.roles):
            self._pipeline._residents.enter()

    def _ask(self, kind: str, roles: tuple[str, ...]) -> None:
        call = self._pipeline._next_number("lease")
        if self._pipeline.rank == 0:
            self._pipeline._channel.send(kind, call=call, roles=list(roles))
        answer = self._pipeline._channel.wait("request_lease", call)
        if answer["type"] == "refused":
            raise LeaseRefused(answer["code"], answer["reason"])
        self._call, self.roles = call, roles

    def _leave(self, timeout: float | None) -> None:
        try:
            self._pipeline._residents.leave()
            self._pipeline._channel.send("offloaded", call=self._call)
            self._pipeline._channel.wait("offloaded", self._call, timeout)
        finally:
            self._pipeline._release(self)


class Rollout:
    """A demand for samples: inside `with pipeline.rollout(target=256) as rollout:` an engine is routable and requests are answered."""

    def __init__(
        self,
        pipeline: Pipeline,
        target: int,
        number: int,
        *,
        trajectories: bool = False,
        per_rank: bool = False,
        evaluation: bool = False,
    ) -> None:
        self.number = number
        self.target = target
        self._pipeline = pipeline
        self._on_the_wire = number + _EVALUATIONS if evaluation else number
        self._kind = {name: True for name, so in (("trajectories", trajectories), ("per_rank", per_rank)) if so}
        self._compared = not per_rank and pipeline.world_size > 1
        self._names: dict[Hashable, _Name] = {}  # of each sample's index, or of its key
        self._keyed: bool | None = None
        self._asked = 0  # the sum of what was asked for, each sample as a number of 128 bits: the order does not count
        self._results: dict[_Name, Sample | tuple[str, str]] = {}  # in the order in which they came
        self._cancelled: list[_Name] = []
        self._ended: set[Hashable] = set()
        self._failure: PipelineError | None = None
        self._closed_at: float | None = None

    def __enter__(self) -> Rollout:
        channel = self._pipeline._channel
        if self._decides or self._per_rank:
            channel.send("open_rollout", rollout=self._on_the_wire, target=self.target, **self._kind)
        answer = channel.wait("open_rollout", self._on_the_wire)
        if answer["type"] == "refused":
            raise RolloutRefused(answer["code"], answer["reason"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            if self._compared:
                self._pipeline._channel.send("asked", rollout=self._on_the_wire, samples=len(self._names), digest=self._digest)
            self._close(None)
            if self._compared:
                self._raise_if_ranks_have_asked_apart()
            return
        with contextlib.suppress(SupervisorGone, TimeoutError):
            self._close(_LEAVE_S)

    def start(
        self,
        prompts: Iterable[Sequence[int]],
        *,
        keys: Iterable[Hashable] | None = None,
        expected_tokens: int | Sequence[int | None] | None = None,
        session: str | Sequence[str | None] | None = None,
        options: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Sequence[Any]:
        """Asks for one sample for each prompt (token ids) and returns at once: the samples' keys, or without keys their indexes (a range).

        `sampling` goes to the engine as SGLang's sampling_params (`max_new_tokens=8, temperature=1.0 …`); each sample's seed is set here.
        It comes from the sample's index, which is the order of the calls; where threads or ranks ask in any order, or several times for one
        trajectory, it comes from a key: a string, a number, bytes, None, or a tuple of these, as in `keys=[(game, turn)]`. In one rollout either
        all samples have keys or none.
        `expected_tokens`, one for all or one for each prompt, is how long the answer will be, as far as the script can tell. The longest are
        started first; without it the gateway learns it from earlier samples. `session`, one for all or one for each prompt: samples of one
        session go to one engine as long as that serves; by default those whose keys are tuples with one beginning. Neither changes any answer.
        `options` are further fields of SGLang's `/generate` (`top_logprobs_num`, `lora_path` …); what comes of them is in `Sample.meta_info`.
        """
        asked = [[int(token) for token in prompt] for prompt in prompts]
        named = None if keys is None else list(keys)
        if named is not None and len(named) != len(asked):
            raise ValueError(f"{len(named)} keys for {len(asked)} prompts")
        expected, sessions = _per_prompt(expected_tokens, int, len(asked)), _per_prompt(session, str, len(asked))
        if named is not None and session is None:
            sessions = [sample_name(key[0]) if isinstance(key, tuple) and key else None for key in named]
        further = {"options": dict(options)} if options else {}
        names = None if named is None else [sample_name(key) for key in named]
        with self._pipeline._channel.changed:
            handles, wire = self._take_names(named, names, len(asked))
            requests = {
                name: {
                    "sample": name,
                    "input_ids": asked[place],
                    "sampling_params": {"sampling_seed": sample_seed(self._pipeline.seed, self._on_the_wire, name), **sampling},
                    "expected_tokens": expected[place],
                    "session": sessions[place],
                    **further,
                }
                for place, name in enumerate(wire)
            }
            if self._compared:
                self._asked += sum(_as_number(request) for request in requests.values())
            first = len(self._names) - len(wire)
            askers = {name: (first + place, None if named is None else named[place]) for place, name in enumerate(wire)}
        for part in _batches(requests):
            name = f"trainshed-rollout-{self.number}-{next(iter(part))}"
            threading.Thread(target=_Fetch(self, part, askers).run, name=name, daemon=True).start()
        return handles

    def _take_names(self, keys: list[Hashable] | None, names: list[str] | None, count: int) -> tuple[Sequence[Any], list[_Name]]:
        """Returns how the script names its new samples, and how they are named towards the gateway. Raises RolloutRefused, ValueError."""
        if self._closed_at is not None:
            raise RolloutRefused("out_of_order", f"rollout {self.number} is closed")
        if not count:
            return ([] if keys is not None else range(len(self._names), len(self._names))), []
        if self._keyed not in (None, keys is not None):
            raise ValueError("in one rollout either all samples have keys or none")
        if keys is None or names is None:
            ours = range(len(self._names), len(self._names) + count)
            each, offset = (self._pipeline.world_size, self._pipeline.rank) if self._per_rank else (1, 0)
            handles: Sequence[Any] = ours
            wire: list[_Name] = [index * each + offset for index in ours]
        else:
            handles, wire = keys, list(names)
            if twice := [key for key, times in Counter(keys).items() if times > 1 or key in self._names]:
                raise ValueError(f"rollout {self.number} has a sample with the key {twice[0]!r} already")
        self._keyed = keys is not None
        self._names.update(zip(handles, wire))  # noqa: B905  Python 3.9
        return handles, wire

    def samples(self, keys: Iterable[Hashable] | None = None) -> list[Sample]:
        """Waits for the samples with these keys or indexes and returns them in this order. After the close some are partial.

        By default all that were started: in the order of their indexes, or of their keys. Raises SamplesFailed, SupervisorGone or
        RolloutRefused (its code is `stopping` when the supervisor stops: return then).
        """
        channel = self._pipeline._channel
        with channel.changed:
            wanted = self._wanted(keys)
            channel.changed.wait_for(lambda: self._settled(wanted))
            return self._take(wanted)

    def _wanted(self, keys: Iterable[Hashable] | None) -> dict[Hashable, _Name]:
        """Returns the names of samples by key or index. Raises KeyError for one that was never asked for."""
        if keys is not None:
            return {key: self._names[key] for key in keys}
        return {key: self._names[key] for key in (_in_order(self._names) if self._keyed else self._names)}

    def _settled(self, wanted: Mapping[Hashable, _Name]) -> bool:
        """Tells whether these samples are there, or will not come."""
        return bool(self._failure) or self._pipeline._channel.closing or all(name in self._results for name in wanted.values())

    def _take(self, wanted: Mapping[Hashable, _Name]) -> list[Sample]:
        """Returns these samples. Raises what `samples` raises where one is missing or has failed."""
        self._raise_for(sum(name not in self._results for name in wanted.values()))
        results = {key: self._results[name] for key, name in wanted.items()}
        samples = [result for result in results.values() if isinstance(result, Sample)]
        if len(samples) < len(results):
            raise SamplesFailed({key: result for key, result in results.items() if isinstance(result, tuple)}, samples)
        return samples

    def _raise_for(self, missing: int) -> None:
        """Raises the reason why so many samples will not come."""
        channel = self._pipeline._channel
        if not missing:
            return
        if channel.lost is None and channel.stopping is not None:
            raise RolloutRefused("stopping", f"the supervisor is stopping: {missing} samples of rollout {self.number} will not come")
        raise self._failure or SupervisorGone(f"{missing} samples of rollout {self.number} are missing: {channel.lost}")

    def as_completed(self, keys: Iterable[Hashable] | None = None) -> Iterator[Sample]:
        """Yields these samples as they come, by default all, those too that are started meanwhile. Then raises what `samples` raises."""
        channel, seen = self._pipeline._channel, 0
        chosen = None if keys is None else set(self._wanted(keys).values())
        while True:
            with channel.changed:
                channel.changed.wait_for(lambda before=seen: len(self._results) > before or self._settled(self._wanted(keys)))  # type: ignore[misc]
                came = list(self._results)[seen:]
                seen += len(came)
                found = [self._results[name] for name in came if chosen is None or name in chosen]
                if not came:
                    self._take(self._wanted(keys))
                    return
            yield from (one for one in found if isinstance(one, Sample))

    def first(self, count: int, keys: Iterable[Hashable] | None = None) -> list[Sample]:
        """Waits until `count` samples are there, of those started so far or of these, ends the others early and returns the first, in order.

        Which are the first is decided once, by rank 0, for all ranks; with `per_rank` each decides for itself. What there is of the others
        comes as partial answers (`samples`). Raises ValueError for a count that cannot be, SamplesFailed where too many fail, and what
        `samples` raises.
        """
        channel, pipeline = self._pipeline._channel, self._pipeline
        with channel.changed:
            wanted = self._wanted(keys)
        if not 0 < count <= len(wanted):
            raise ValueError(f"the first {count} of {len(wanted)} samples")
        if not (self._decides or self._per_rank):
            answer = channel.wait("choose", pipeline._next_number("choose"), unless_closing=True)
            if answer["type"] == "refused":
                raise RolloutRefused(answer["code"], answer["reason"])
            chosen = set(answer["samples"])
            return self.samples([key for key, name in wanted.items() if name in chosen])
        of = {name: key for key, name in wanted.items()}
        with channel.changed:
            channel.changed.wait_for(lambda: len(self._whole(of)) >= count or self._settled(wanted))
            first = self._whole(of)[:count]
            if len(first) < count:
                self._take(wanted)
                raise RolloutRefused("cancelled", f"only {len(first)} of {len(wanted)} samples have ended by themselves, not {count}")
        if self._compared:
            call = pipeline._next_number("choose")
            channel.send("choose", call=call, rollout=self._on_the_wire, samples=first)
            channel.wait("choose", call, unless_closing=True)
        chosen = set(first)
        self.cancel([key for key, name in wanted.items() if name not in chosen])
        return self.samples([key for key, name in wanted.items() if name in chosen])

    def _whole(self, of: Mapping[_Name, Hashable]) -> list[_Name]:
        """Returns the samples among these that are there and whole, in the order in which they came."""
        there = ((name, one) for name, one in self._results.items() if name in of)
        return [name for name, one in there if isinstance(one, Sample) and one.finish_reason.get("type") != "abort"]

    def cancel(self, keys: Iterable[Hashable] | None = None) -> None:
        """Ends these samples early, by default all that are not there yet. What there is of them is their answer (`finish_reason` is `abort`).

        Where all ranks ask for the same samples, rank 0's call counts.
        """
        with self._pipeline._channel.changed:
            names = [name for name in self._wanted(keys).values() if name not in self._results]
            self._cancelled += names
        if names:
            self._send_cancelled()

    def _send_cancelled(self) -> None:
        """Tells the gateway what was cancelled. One that does not answer is told again by whoever asks it for these samples again."""
        if not (self._decides or self._per_rank):
            return
        with contextlib.suppress(OSError, http.client.HTTPException), _connection(self._pipeline.url) as connection:
            path = f"/rollouts/{self._on_the_wire}/cancel"
            _post(connection, self._pipeline, path, {"samples": list(self._cancelled)}).read()

    def generate(self, prompts: Iterable[Sequence[int]], **sampling: Any) -> list[Sample]:
        """Starts a sample for each prompt and waits for these samples: `start`, then `samples`. Raises what they raise.

        Every rank that asks with the same prompts gets the same answers.
        """
        return self.samples(self.start(prompts, **sampling))

    def trajectory(self, key: Hashable) -> Trajectory:
        """Returns one trajectory, for a `with`: its samples are named (key, 0), (key, 1) …; at the end of the `with` it has ended."""
        return Trajectory(self, key)

    def _end_trajectory(self, key: Hashable) -> None:
        with self._pipeline._guard:
            self._ended.add(sample_name(key))
            if "trajectories" in self._kind and (self._decides or self._per_rank):
                self._pipeline._channel.send("end_trajectories", rollout=self._on_the_wire, ended=len(self._ended))

    @property
    def _decides(self) -> bool:
        return self._pipeline.rank == 0

    @property
    def _per_rank(self) -> bool:
        return "per_rank" in self._kind

    @property
    def _digest(self) -> str:
        return format(self._asked % (1 << 128), "032x")

    def _raise_if_ranks_have_asked_apart(self) -> None:
        """Raises RolloutRefused where another rank has asked for other samples, or each for an equal share: equal prompts are one sample."""
        pipeline, asked = self._pipeline, len(self._names)
        if not self._decides:
            answer = pipeline._channel.wait("asked", self._on_the_wire)
            if answer["type"] == "refused":
                raise RolloutRefused(answer["code"], answer["reason"])
        if 0 < asked < self.target == asked * pipeline.world_size and "trajectories" not in self._kind:
            wanted = f"rollout {self.number} wants {self.target} samples, and rank {pipeline.rank} asked for {asked}"
            raise RolloutRefused("ranks_ask_apart", f"{wanted}, which every rank gets: {_ALIKE}")

    def _close(self, timeout: float | None) -> None:
        channel = self._pipeline._channel
        with channel.changed:
            self._closed_at = time.monotonic()
            channel.notify()
        if self._decides or self._per_rank:
            channel.send("close_rollout", rollout=self._on_the_wire)
        answer = channel.wait("close_rollout", self._on_the_wire, timeout)
        if answer["type"] == "refused" and answer["code"] == "ranks_ask_apart":
            raise RolloutRefused(answer["code"], answer["reason"])

    def _given_up(self) -> bool:
        """Tells whether asking the gateway again would be in vain."""
        late = self._closed_at is not None and time.monotonic() - self._closed_at > _LATE_S
        return late or self._pipeline._channel.closing


class Trajectory:
    """A trajectory: samples that follow each other, in one session. Their names, and so their seeds, come from its key and their order in it."""

    def __init__(self, rollout: Rollout, key: Hashable) -> None:
        self.key = key
        self.turns = 0
        self._rollout = rollout

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rollout._end_trajectory(self.key)

    def start(self, prompt: Sequence[int], **sampling: Any) -> Hashable:
        """Asks for its next sample and returns that one's key, as `Rollout.start` does."""
        key = (self.key, self.turns)
        self._rollout.start([prompt], keys=[key], **sampling)
        self.turns += 1
        return key

    def generate(self, prompt: Sequence[int], **sampling: Any) -> Sample:
        """Asks for its next sample and waits for it, as `Rollout.generate` does."""
        return self._rollout.samples([self.start(prompt, **sampling)])[0]


@dataclass(frozen=True)
class Span:
    """A stretch of output tokens, `start:end`, that one engine made in one life with one weight version."""

    engine: int
    incarnation: int
    version: int
    start: int
    end: int


@dataclass(frozen=True)
class Sample:
    """An answer. `output_ids` and `logprobs` are of equal length; `finish_reason["type"]` is `stop`, `length` or `abort` (partial).

    `key` is what the script named it by, if it did. `meta_info` is what the engine said besides, in SGLang's names: `cached_tokens`,
    `output_top_logprobs` where they were asked for …
    """

    index: int
    prompt_ids: list[int]
    output_ids: list[int]
    logprobs: list[float]
    finish_reason: dict[str, Any]
    spans: list[Span]
    text: str
    key: Any = None
    meta_info: dict[str, Any] = field(default_factory=dict)


def sample_seed(seed: int, rollout: int, name: int | str) -> int:
    """Returns the seed of one sample, 0 <= s < 2**63, from (pipeline seed, rollout, index or name) alone, as `trainers.protocol.seeds` does.

    The rollout of an evaluation is 10**14 + its number.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}:{rollout}:{name}".encode(), digest_size=8).digest(), "big") >> 1


def sample_name(key: Hashable) -> str:
    """Returns the name of the sample with this key, equal in every process, as `trainers.protocol.seeds` does.

    Raises TypeError for what is not made of strings, numbers, bytes, None and tuples: its hash is another in each process.
    """
    return "k" + hashlib.blake2b(_canonical(key).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class PipelineError(RuntimeError):
    """The base of every error that this module raises on purpose."""


class NotSupervised(PipelineError):
    """The script was not started by Trainshed, or the way to the supervisor was lost in between, or it is no rank of this trainer."""


class SupervisorGone(PipelineError):
    """The supervisor has closed its end: nothing can be asked any more; end the script."""


class Refused(PipelineError):
    """The supervisor refuses a call. `code` is stable, see `trainers.protocol.trainer_messages.Refused`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class LeaseRefused(Refused):
    """The GPUs will not be granted; the trainer holds what it held before."""


class NestedLease(LeaseRefused):
    """A lease was asked for inside a lease: ask for both roles at once, or use `lease.become`."""

    def __init__(self) -> None:
        super().__init__("nested_lease", 'a lease is held already: ask for lease("a", "b") at once, or use lease.become("b")')


class RolloutRefused(Refused):
    """The rollout will not be opened, or the gateway will not serve it."""


class PublishFailed(Refused):
    """The weights were not published; the published version is the old one."""


class NoRoom(PublishFailed):
    """There is no room for the snapshot in the shared-memory folder."""


class SamplesFailed(PipelineError):
    """Some samples failed: `failures` (index or key -> (code, message)); `samples` holds the others, in order."""

    def __init__(self, failures: dict[Any, tuple[str, str]], samples: list[Sample]) -> None:
        index, (code, message) = next(iter(failures.items()))
        super().__init__(f"{len(failures)} of {len(failures) + len(samples)} samples failed; sample {index}: {code}: {message}")
        self.failures = failures
        self.samples = samples


# --- limits and patience ---------------------------------------------------------------------------------------------------------------

MAX_FRAME = 1 << 20
"""Bytes of one frame's body, as in `trainers.protocol.framing`."""
MAX_FIGURES, MAX_NAME = 64, 128
"""Figures of one report, and characters of a figure's name, as in `trainers.protocol.trainer_messages.Report`."""
MAX_LINE = 64 << 20
"""Bytes of one sample's line from the gateway."""
_EVALUATIONS = 10**14  # towards the supervisor, the rollouts of evaluations have this added to their number
_EVALUATIONS_A_STEP = 1000
_ALIKE = (
    "every rank asks for all prompts, in the same order, and takes its share of the answers; or each asks for prompts of its own,"
    " in pipeline.rollout(..., per_rank=True)"
)
_TOKENS_PER_REQUEST, _SAMPLES_PER_REQUEST = 2_000_000, 4096  # of prompts in one request; the gateway takes 64 MiB and 4,194,304 values
_MAX_REASON = 2000  # characters of a failure that the other ranks are told of
_HEADER = struct.Struct(">I")
_HELLO_S = 60.0  # for the first answer; the supervisor is there, or something is wrong
_LEAVE_S = 10.0  # how long a failing body waits for the supervisor's answer before its exception goes on
_SILENCE_S = 60.0  # the gateway says something at least every 10 s; silence is a lost connection
_UNKNOWN_S = 30.0  # how long a gateway that was just replaced may not know the rollout yet
_LATE_S = 30.0  # how long after its close a rollout's partial samples are waited for
_TRANSIENT = ("full", "rollout_unknown")  # the gateway's codes of failures that asking again may mend
_ORPHAN_S = 30.0  # how long a script may live on without its supervisor


# --- the channel to the supervisor -----------------------------------------------------------------------------------------------------


def encode(kind: str, **fields: Any) -> bytes:
    """Returns one frame (u32 big-endian length, JSON). Raises ValueError for what JSON or the limit cannot carry."""
    body = json.dumps({"type": kind, **fields}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    if len(body) > MAX_FRAME:
        raise ValueError(f"a {kind} of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _HEADER.pack(len(body)) + body


def _as_text(text: str) -> str:
    """Returns as much of a text as a frame may carry: no NUL, and no halves of characters, which a file name may have."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[:_MAX_REASON]


def decode(buffer: bytearray) -> Iterator[dict[str, Any]]:
    """Takes complete frames off the front of `buffer` and yields their messages. Raises ValueError for bytes that are no frame of ours."""
    while len(buffer) >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer)
        if length > MAX_FRAME:
            raise ValueError(f"a frame announces {length} bytes; the limit is {MAX_FRAME}")
        end = _HEADER.size + length
        if len(buffer) < end:
            return
        body = bytes(buffer[_HEADER.size : end])
        del buffer[:end]
        message = json.loads(body)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ValueError("a frame holds no tagged message")
        yield message


_Key = tuple[str, int]
_Name = Union[int, str]  # noqa: UP007  Python 3.9; of a sample, towards the gateway: its number, or what was made of its key
# answer -> (the call it answers, the field that numbers it)
_ANSWERS: dict[str, tuple[str, str | None]] = {
    "welcome": ("hello", None),
    "rollout_opened": ("open_rollout", "rollout"),
    "rollout_closed": ("close_rollout", "rollout"),
    "asked_alike": ("asked", "rollout"),
    "chosen": ("choose", "call"),
    "lease_granted": ("request_lease", "call"),
    "lease_ended": ("offloaded", "call"),
    "published": ("publish", "call"),
    "checkpoint_recorded": ("checkpoint", "step"),
}


class _Channel:
    """The descriptor to the supervisor. One thread reads it and hands each answer to the call that waits; `changed` guards what is waited for."""

    def __init__(self, sock: socket.socket, exit_when_gone: bool) -> None:
        sock.setblocking(True)
        sock.set_inheritable(False)  # a grandchild that held it would hide our death from the supervisor
        self.changed = threading.Condition()
        self.listeners: list[Callable[[], None]] = []  # called, under `changed`, when something has
        self.lost: str | None = None
        self.stopping: float | None = None
        self._sock = sock
        self._writing = threading.Lock()
        self._answers: dict[_Key, dict[str, Any]] = {}
        self._exit_when_gone = exit_when_gone
        _close_after_fork(sock)
        threading.Thread(target=self._read, name="trainshed-client", daemon=True).start()

    def send(self, kind: str, **fields: Any) -> None:
        frame = encode(kind, **fields)
        try:
            with self._writing:
                self._sock.sendall(frame)
        except OSError as error:
            raise SupervisorGone(f"the supervisor does not read any more ({error})") from error

    def notify(self) -> None:
        """Wakes whoever waits for something to change; `changed` is held."""
        self.changed.notify_all()
        for listener in self.listeners:
            listener()

    def wait(self, call: str, number: int = 0, timeout: float | None = None, *, unless_closing: bool = False) -> dict[str, Any]:
        """Returns the answer to `call`, once. Raises SupervisorGone, or TimeoutError after `timeout` seconds.

        With `unless_closing` the answer is a refusal where the supervisor is stopping: who should have made the call may have given up.
        """
        key = (call, number)
        with self.changed:
            if not self.changed.wait_for(
                lambda: key in self._answers or self.lost is not None or (unless_closing and self.closing), timeout
            ):
                raise TimeoutError(f"no answer to {call} {number} within {timeout} s")
            if key in self._answers:
                return self._answers.pop(key)
            if self.lost is None:
                return {"type": "refused", "code": "stopping", "reason": "the supervisor is stopping"}
            raise SupervisorGone(f"no answer to {call} {number}: {self.lost}")

    @property
    def closing(self) -> bool:
        """Tells whether the run is ending: no sample will come any more."""
        return self.lost is not None or self.stopping is not None

    def close(self) -> None:
        self._exit_when_gone = False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        buffer = bytearray()
        reason = "the supervisor has closed the channel"
        try:
            while data := self._sock.recv(1 << 16):
                buffer += data
                for message in decode(buffer):
                    self._take(message)
        except (OSError, ValueError, KeyError) as error:
            reason = f"the channel to the supervisor broke: {type(error).__name__}: {error}"
        with self.changed:
            self.lost = reason
            self.notify()
        if self._exit_when_gone:
            time.sleep(_ORPHAN_S)  # the script has this long to end by itself: nobody is left to end it
            sys.stderr.write(f"trainshed: {reason}; ending this rank\n")
            sys.stderr.flush()
            os._exit(75)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        with self.changed:
            if kind == "stopping":
                self.stopping = float(message["grace_s"])
            elif kind == "refused":
                call = "request_lease" if message["about"] == "exchange_lease" else str(message["about"])
                self._answers[call, int(message["number"])] = message
            elif kind in _ANSWERS:  # what a newer supervisor may say besides is not for us
                call, about = _ANSWERS[kind]
                self._answers[call, 0 if about is None else int(message[about])] = message
            self.notify()


def _inherited(number: int) -> socket.socket:
    """Returns the socket with this descriptor. Raises NotSupervised where that is not ours any more."""
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISSOCK(mode):
            sock = socket.socket(fileno=number)
            if sock.family == socket.AF_UNIX:
                return sock
            sock.detach()
    except OSError:
        pass
    raise NotSupervised(
        f"the descriptor {number} (TRAINSHED_FD) was closed on the way here: what Trainshed started made this process by itself, as torchrun,"
        ' accelerate launch, deepspeed and subprocess do. Write processes = "one" into [pipeline.trainer]'
    )


def _dialled(path: str) -> socket.socket:
    """Returns a connection to the supervisor's socket, whose path may be longer than the kernel takes. Raises NotSupervised."""
    sock = socket.socket(socket.AF_UNIX)
    folder = -1
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except OSError as error:
        sock.close()
        raise NotSupervised(f"{path} (TRAINSHED_SOCKET): {error.strerror}; the supervisor that made it has ended") from error
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


def _close_after_fork(sock: socket.socket) -> None:
    """Closes the descriptor in forked children: a data loader's worker must not hold our end of the channel open."""
    held = weakref.ref(sock)

    def close() -> None:
        live = held()
        if live is not None:
            live.close()

    os.register_at_fork(after_in_child=close)


# --- samples from the gateway ----------------------------------------------------------------------------------------------------------


def _per_prompt(value: Any, kind: type, count: int) -> list[Any]:
    """Returns one value for each prompt, given one for all or a list of them. Raises ValueError for a list of another length."""
    values = [value] * count if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} prompts")
    return [None if one is None else kind(one) for one in values]


def _canonical(key: Any) -> str:
    if isinstance(key, tuple):
        return "(" + "".join(f"{_canonical(part)}," for part in key) + ")"
    if isinstance(key, float) and not key.is_integer():
        return repr(key)
    if isinstance(key, (int, float)):  # 1, 1.0 and True are one key of a dictionary
        return str(int(key))
    if key is None or isinstance(key, (str, bytes)):
        return repr(key)
    if hasattr(key, "__index__"):  # of numpy or torch
        return str(key.__index__())
    raise TypeError(f"{key!r} is a {type(key).__name__}: a key is made of strings, numbers, bytes, None and tuples of these")


def _in_order(keys: Iterable[Any]) -> list[Any]:
    """Returns the keys in their natural order, or where they have none in one that is the same in every process."""
    found = list(keys)
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=_canonical)


def _as_number(request: Mapping[str, Any]) -> int:
    """Returns 128 bits that stand for what is asked for: the sample's name, its prompt, and how it is to be answered."""
    text = json.dumps([request["sample"], request["input_ids"], request["sampling_params"], request.get("options")], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode("ascii"), digest_size=16).digest(), "big")


def _batches(requests: dict[_Name, dict[str, Any]]) -> Iterator[dict[_Name, dict[str, Any]]]:
    """Splits the requests into batches that fit into one HTTP request each."""
    part: dict[_Name, dict[str, Any]] = {}
    tokens = 0
    for index, request in requests.items():
        if part and (tokens + len(request["input_ids"]) > _TOKENS_PER_REQUEST or len(part) == _SAMPLES_PER_REQUEST):
            yield part
            part, tokens = {}, 0
        part[index] = request
        tokens += len(request["input_ids"])
    if part:
        yield part


class _Fetch:
    """The work of one thread: it gets these samples from the gateway, whatever happens to the connection or to the gateway."""

    def __init__(self, rollout: Rollout, requests: dict[_Name, dict[str, Any]], asked: Mapping[_Name, tuple[int, Any]]) -> None:
        self._rollout = rollout
        self._asked = asked  # index and key of each
        self._pending = requests
        self._changed = rollout._pipeline._channel.changed
        self._unknown_since: float | None = None

    def run(self) -> None:
        pause = 0.05
        trouble = "the gateway did not answer"
        while self._pending and not self._rollout._given_up():
            before = len(self._pending)
            try:
                self._post()
                trouble = "the gateway's answer ended early"
            except PipelineError as error:
                self._fail(error)
                return
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
            if not self._pending:
                return
            pause = 0.05 if len(self._pending) < before else min(2.0, pause * 2)
            with self._changed:
                self._changed.wait_for(self._rollout._given_up, pause)
        if self._pending:
            missing = f"rollout {self._rollout.number} ended with {len(self._pending)} samples missing"
            self._fail(RolloutRefused("closed", f"{missing}; {trouble}"))

    def _fail(self, error: PipelineError) -> None:
        with self._changed:
            self._rollout._failure = self._rollout._failure or error
            self._rollout._pipeline._channel.notify()

    def _post(self) -> None:
        """Sends one request for all pending samples; returns at the end of the answer, complete or not."""
        pipeline = self._rollout._pipeline
        with _connection(pipeline.url) as connection:
            path = f"/rollouts/{self._rollout._on_the_wire}/samples"
            answer = _post(connection, pipeline, path, {"samples": list(self._pending.values())})
            if answer.status != 200:
                self._raise_unless_transient(answer.status, answer.read(1 << 16))
                return
            self._unknown_since = None
            if not self._pending.keys().isdisjoint(self._rollout._cancelled):  # a new gateway has not been told
                self._rollout._send_cancelled()
            while self._pending:
                line = answer.readline(MAX_LINE)
                if not line.endswith(b"\n"):
                    return
                if line.strip():
                    self._take(line)

    def _raise_unless_transient(self, status: int, body: bytes) -> None:
        """Returns when asking again may help; raises RolloutRefused when it cannot."""
        code, message = f"http_{status}", body.decode("utf-8", "replace")[:500]
        with contextlib.suppress(ValueError, AttributeError):
            error = json.loads(body).get("error")
            if isinstance(error, dict):
                code, message = str(error.get("code") or error.get("type") or code), str(error.get("message"))
        if code == "no_engine" or (code == "rollout_closed" and self._rollout._closed_at is not None):
            raise RolloutRefused(code, message)
        now = time.monotonic()
        self._unknown_since = self._unknown_since or now
        if status < 500 and status != 429 and (status not in (404, 409, 425) or now - self._unknown_since > _UNKNOWN_S):
            raise RolloutRefused(code, f"the gateway answered {status}: {message}")

    def _take(self, text: bytes) -> None:
        result: Sample | tuple[str, str]
        try:
            line = json.loads(text)
            name = line["sample"]
            request = self._pending.get(name)
            if request is None:
                return
            if "error" in line:
                if line["error"]["code"] in _TRANSIENT:
                    return
                result = (str(line["error"]["code"]), str(line["error"]["message"]))
                if result[0] == "sample_mismatch" and self._rollout._pipeline.world_size > 1:
                    result = (result[0], f"{result[1]}; {_ALIKE}")
            else:
                result = _parse_sample(line, request["input_ids"], *self._asked[name])
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # asking again would bring the same
            raise RolloutRefused("bad_answer", f"a line of the gateway's is no sample: {type(error).__name__}: {error}") from error
        del self._pending[name]
        with self._changed:
            self._rollout._results[name] = result
            self._rollout._pipeline._channel.notify()


@contextlib.contextmanager
def _connection(url: str) -> Iterator[http.client.HTTPConnection]:
    split = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(split.hostname or "127.0.0.1", split.port, timeout=_SILENCE_S)
    try:
        yield connection
    finally:
        connection.close()


def _post(connection: http.client.HTTPConnection, pipeline: Pipeline, path: str, body: Any) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
    if pipeline.api_key is not None:
        headers["Authorization"] = f"Bearer {pipeline.api_key}"
    path = urllib.parse.urlsplit(pipeline.url).path.rstrip("/") + path
    connection.request("POST", path, json.dumps(body).encode("ascii"), headers)
    return connection.getresponse()


def _parse_sample(line: dict[str, Any], prompt: list[int], index: int, key: Any) -> Sample:
    ids, logprobs = [int(token) for token in line["output_ids"]], [float(value) for value in line["logprobs"]]
    if len(ids) != len(logprobs):
        raise ValueError(f"sample {line['sample']} has {len(ids)} tokens and {len(logprobs)} logprobs")
    spans = [Span(s["engine"], s["incarnation"], s["version"], s["start"], s["end"]) for s in line["spans"]]
    text, meta_info = line.get("text") or "", line.get("meta_info") or {}
    return Sample(index, prompt, ids, logprobs, line["finish_reason"], spans, text, key, meta_info)


# --- residents: what moves on to the GPU with a lease ----------------------------------------------------------------------------------


class _Residents:
    """What is moved on to the GPU at each lease and off it at its end."""

    def __init__(self, gpus: Sequence[str], device: str) -> None:
        self._gpus = gpus
        self._device = device
        self._inside = False
        self._mover: Any = None

    def add(self, things: Sequence[Any]) -> None:
        if self._mover is None:
            self._mover = _mover(self._gpus, self._device)
        self._mover.add(*things)
        if self._inside:
            self._mover.onload()

    def enter(self) -> None:
        if self._inside:
            return
        self._inside = True
        if self._mover is not None:  # a script that offloads by itself pays for nothing
            self._mover.onload()

    def leave(self) -> None:
        inside, self._inside = self._inside, False
        torch = sys.modules.get("torch")
        gpu = torch is not None and torch.cuda.is_initialized()
        if gpu:
            gc.collect()  # what a reference cycle holds would be measured as ours
        if self._mover is not None and inside:
            self._mover.offload()
        if torch is not None and gpu:
            clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
            if clear is not None:
                clear()
            torch.cuda.empty_cache()


def _mover(gpus: Sequence[str], device: str) -> Any:
    """What moves residents: `trainshed.resident`, which a script that copied this file alone does not have."""
    try:
        from trainshed.resident import Resident
    except ImportError as error:
        raise PipelineError(f"resident() needs the whole folder trainshed, not this file alone ({error})") from error
    return Resident(gpus[0] if gpus else device)


# --- weights as a snapshot -------------------------------------------------------------------------------------------------------------

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TIED = "lm_head.weight"  # the output layer, which is the embedding in many models
# Elements that are checked at once, then written while they are in the processor's cache; so few that torch does not share them among its
# threads, which wait for each other on a busy machine (two of them on two busy cores: 10 times as long).
_PIECE = 32_000
_COPIED_AT_ONCE = 4 << 20  # bytes of an earlier version's file
_LARGE = bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)])
# dtype -> (the last byte of a value that is not finite is one of these, the byte before it has all of these bits)
_NOT_FINITE = {
    "F64": (b"\x7f\xff", 0xF0), "F32": (b"\x7f\xff", 0x80), "BF16": (b"\x7f\xff", 0x80), "F16": (_LARGE, 0), "F8_E5M2": (_LARGE, 0),
    "F8_E4M3": (b"\x7f\xff", 0),
}  # fmt: skip


def write_snapshot(folder: Path, state: Mapping[str, Any], model: Path, base: Path | None = None) -> None:
    """Writes `state` (name -> torch tensor) as a Hugging Face folder: one safetensors file, and `model`'s configuration and tokenizer.

    With `base`, an earlier version's folder, its other tensors come into further files. Every value is checked to be finite on its way
    into the file: the supervisor looks at the headers alone.

    The file is written here, not by the safetensors package, because that truncates the room reserved for it and
    wants a second copy of everything in host memory. Raises NoRoom, PublishFailed, OSError.
    """
    tied = _is_tied(model)
    tensors = _untied(state, tied)
    others = {} if base is None else _others(base, tensors, tied)
    described: dict[str, tuple[str, list[int], int]] = {}
    for name, tensor in tensors.items():
        dtype = _DTYPES.get(str(tensor.dtype).split(".")[-1])
        if dtype is None:
            raise PublishFailed("bad_snapshot", f"{name} has dtype {tensor.dtype}, which safetensors does not know")
        described[name] = (dtype, list(tensor.shape), tensor.numel() * tensor.element_size())
    folder.mkdir(mode=0o700)
    _write_file(folder / _FILE, described, lambda name: _pieces(name, tensors[name], described[name][0]))
    for source in sorted(model.iterdir()):
        if source.suffix in _COPIED and not source.name.endswith(".index.json") and source.is_file():
            shutil.copyfile(source, folder / source.name)
    if others:
        _add(folder, list(tensors), others)


def _write_file(path: Path, described: Mapping[str, tuple[str, list[int], int]], pieces: Callable[[str], Iterable[memoryview]]) -> None:
    """Writes one safetensors file of these tensors (dtype, shape, bytes), each in `pieces`. Raises NoRoom, OSError, and what `pieces` raises."""

    def width(name: str) -> int:
        _, shape, size = described[name]
        return size // (math.prod(shape) or 1)

    # Wide types first, then by name, as safetensors does: every tensor is aligned to its own element size.
    names = sorted(described, key=lambda name: (-width(name), name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape, size = described[name]
        start, end = end, end + size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    header += b" " * (-(len(header) + 8) % 64)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        size = 8 + len(header) + end
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            raise NoRoom("no_room", f"{size} bytes for a snapshot in {path.parent.parent}: {error.strerror}") from error
        _write_all(file, memoryview(struct.pack("<Q", len(header)) + header))
        for name in names:
            for piece in pieces(name):
                _write_all(file, piece)


def _write_all(file: Any, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done : done + (1 << 30)])  # Linux writes at most 2 GiB at once


def _pieces(name: str, tensor: Any, dtype: str) -> Iterator[memoryview]:
    """Yields a tensor's bytes in pieces, each after it was seen to be finite. Raises PublishFailed."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    count, width = flat.numel(), flat.element_size()
    if not count:
        return
    if not flat.data_ptr():
        raise PublishFailed(
            "bad_snapshot", f"{name} is a {type(tensor).__name__} without memory of its own, not a torch tensor with its values"
        )
    data = memoryview((ctypes.c_ubyte * (count * width)).from_address(flat.data_ptr())).cast("B")
    for start in range(0, count, _PIECE):
        end = min(start + _PIECE, count)
        piece = data[start * width : end * width]
        if not _finite(flat, start, end, piece, dtype):
            where = f"the first among its elements {start} to {end - 1}"
            raise PublishFailed("not_finite", f"{name} has values that are NaN or infinite ({where}); the version before stays")
        yield piece


def _finite(flat: Any, start: int, end: int, data: memoryview, dtype: str) -> bool:
    """Tells whether the elements `start:end` of a flat tensor, whose bytes are `data`, are all finite."""
    tops, mask = _NOT_FINITE.get(dtype, (b"", 0))
    if not tops:
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(flat, torch.Tensor) and not dtype.startswith("F8"):
        # Both are NaN if one value is. A sum would overflow for large values that are finite.
        return all(math.isfinite(extreme) for extreme in torch.aminmax(flat[start:end]))
    raw, width = bytes(data), len(data) // (end - start)
    top = raw[width - 1 :: width]
    if not any(last in top for last in tops):
        return True
    return bool(mask) and not any(last in tops and other & mask == mask for last, other in zip(top, raw[width - 2 :: width]))  # noqa: B905  Python 3.9


# --- what a snapshot is made of: names, ties, and the tensors of an earlier version

# What wrappers of modules put into names: torch.compile, FSDP, activation checkpointing and peft anywhere, DDP and peft in front.
_WRAPPINGS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_FRONTS = (("module",), ("base_model", "model"))
_MERGE = (
    "merge the adapter first: publish the state of `model.merge_and_unload()`, or call `model.merge_adapter()`, publish what has no"
    " `lora_` in its name, and `model.unmerge_adapter()`"
)


def unwrapped(state: Mapping[str, Any], model: Path) -> tuple[dict[str, Any], str]:
    """Returns the tensors under the names that they have without wrappers of modules, and what was renamed in a sentence, empty for nothing.

    Names that the model's own files have are left as they are. Raises PublishFailed for tensors of an adapter, which no engine would load.
    """
    names = {name: _unwrapped_name(name) for name in state}
    if all(name == plain and not _of_adapter(name, frozenset()) for name, plain in names.items()):
        return dict(state), ""
    known = _names_in(model)
    names = {name: name if name in known else plain for name, plain in names.items()}
    bases = frozenset(name.partition(".base_layer.")[0] for name in names if ".base_layer." in name and name not in known)
    if adapters := [name for name in names if name not in known and _of_adapter(name, bases)]:
        more = f" and {len(adapters) - 3} more" if len(adapters) > 3 else ""
        raise PublishFailed(
            "unmerged_adapter", f"{', '.join(adapters[:3])}{more}: tensors of an adapter, which engines do not load; {_MERGE}"
        )
    renamed = {plain: state[name] for name, plain in names.items()}
    if len(renamed) < len(names):
        raise PublishFailed("does_not_fit", "two tensors have one name when what wrappers of modules put into names is left out")
    changed = [f"{plain} for {name}" for name, plain in names.items() if name != plain]
    return renamed, f"publish takes {changed[0]}, as the model's files do, and so for {len(changed)} names" if changed else ""


def _without_wrappings(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(".") if part not in _WRAPPINGS)


def _unwrapped_name(name: str) -> str:
    if not isinstance(name, str):
        raise PublishFailed("bad_snapshot", f"{name!r} is a {type(name).__name__}, not the name of a tensor")
    parts = _without_wrappings(name)
    while front := next((front for front in _FRONTS if parts[: len(front)] == front and len(parts) > len(front)), ()):
        parts = parts[len(front) :]
    return ".".join(parts)


def _of_adapter(name: str, bases: frozenset[str]) -> bool:
    """Tells whether this is a tensor that peft has put beside the model's own; `bases` are the modules that have one of the model's as `base_layer`."""
    parts = name.split(".")
    if any(part.startswith("lora_") or part in ("modules_to_save", "original_module") for part in parts):
        return True
    return "base_layer" not in parts and any(".".join(parts[:end]) in bases for end in range(1, len(parts)))


def _is_tied(model: Path) -> bool:
    """Tells whether the model's configuration says that the output layer is the embedding. Raises PublishFailed."""
    if not model.is_dir():
        raise PublishFailed("bad_snapshot", f"{model} is no folder with a configuration and tokenizer to publish")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((model / "config.json").read_text("utf-8")).get("tie_word_embeddings"))
    return False


def _untied(state: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Returns the tensors to write: where some are `tied`, only one of those that are the same memory, and not the output layer."""
    kept: dict[str, Any] = {}
    seen: dict[tuple[int, Any, Any], str] = {}
    for name, tensor in state.items():
        if hasattr(tensor, "full_tensor") or hasattr(tensor, "local_shards"):
            raise PublishFailed(
                "sharded",
                f"{name} is a {type(tensor).__name__}, of which this rank has a part: call full_tensor() on every rank,"
                " as in publish(lambda: {name: tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor"
                " for name, tensor in model.state_dict().items()})",
            )
        if not hasattr(tensor, "data_ptr"):
            raise PublishFailed("bad_snapshot", f"{name} is a {type(tensor).__name__}, not a torch tensor")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tied and key[0] and key in seen:  # address 0: no memory at all, or none that torch tells of
            if seen[key] != _TIED:
                continue
            del kept[_TIED]
        kept[name] = tensor
        seen[key] = name
    if not kept:
        raise PublishFailed("bad_snapshot", "there are no tensors to publish")
    return kept


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file: `start` is where its bytes begin in the file."""

    file: Path
    dtype: str
    shape: list[int]
    start: int
    size: int


def _stored_in(folder: Path) -> dict[str, _Stored]:
    """Returns the tensors of a Hugging Face folder by name. Raises OSError, ValueError, KeyError, TypeError for one whose files do not tell."""
    if (folder / _INDEX).exists():
        files = sorted(set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values()))
    elif (folder / _FILE).exists():
        files = [_FILE]
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    found: dict[str, _Stored] = {}
    for file in files:
        path = (folder / file).resolve()
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > os.fstat(opened.fileno()).st_size:
                raise ValueError(f"{path} is no safetensors file")
            for name, entry in json.loads(opened.read(length)).items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    found[name] = _Stored(path, entry["dtype"], entry["shape"], 8 + length + start, end - start)
    return found


def _names_in(model: Path) -> frozenset[str]:
    """Returns the names of a model's tensors, none where its files do not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset(_stored_in(model))
    return frozenset()


def _others(base: Path, tensors: Mapping[str, Any], tied: bool) -> dict[str, _Stored]:
    """Returns the tensors of an earlier version that are not among `tensors`. Raises PublishFailed where one of these is not among its own."""
    try:
        stored = _stored_in(base)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishFailed(
            "incomplete", f"{base} does not tell its tensors ({type(error).__name__}: {error}); publish all of them"
        ) from error
    if unknown := [name for name in tensors if name not in stored and name != _TIED]:
        raise PublishFailed("does_not_fit", f"{unknown[0]} and {len(unknown) - 1} more are no tensors of the version before ({base})")
    if tied and _TIED in tensors and _TIED not in stored:
        raise PublishFailed("does_not_fit", f"{_TIED} is the embedding in this model: publish that")
    return {name: one for name, one in stored.items() if name not in tensors and not (tied and name == _TIED)}


def _add(folder: Path, written: Sequence[str], others: Mapping[str, _Stored]) -> None:
    """Adds tensors of an earlier version to a snapshot: a file that has no others is linked, what remains is copied into one more file."""
    shards = {folder / _FILE: list(written)}
    copied: list[str] = []
    for file in sorted({one.file for one in others.values()}):
        names = [name for name, one in others.items() if one.file == file]
        link = folder / f"linked-{len(shards)}.safetensors"
        if _names_in_file(file) == set(names):
            with contextlib.suppress(OSError):  # another file system, or another owner's
                os.link(file, link)
                shards[link] = names
                continue
        copied += names
    if copied:
        _write_file(
            folder / "copied.safetensors",
            {name: (others[name].dtype, others[name].shape, others[name].size) for name in copied},
            lambda name: _copied(others[name]),
        )
        shards[folder / "copied.safetensors"] = copied
    files: dict[str, str] = {}
    for number, (path, names) in enumerate(shards.items(), 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        os.rename(path, folder / name)
        files.update(dict.fromkeys(names, name))
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), "utf-8")


def _names_in_file(file: Path) -> set[str]:
    with open(file, "rb") as opened:
        return set(json.loads(opened.read(int.from_bytes(opened.read(8), "little")))) - {"__metadata__"}


def _copied(one: _Stored) -> Iterator[memoryview]:
    with open(one.file, "rb", buffering=0) as file:
        file.seek(one.start)
        left = one.size
        while left:
            data = file.read(min(left, _COPIED_AT_ONCE))
            if not data:
                raise OSError(f"{one.file} is shorter than it says")
            left -= len(data)
            yield memoryview(data)
