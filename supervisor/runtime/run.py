"""A run from its start to its end: everything is put together here, and taken apart again whatever happens.

Three phases, each of which hands the next one its parts: `prepare` takes what the machine has to give and may refuse the run, `wire` makes
the objects and connects them without doing anything, `serve` starts the tasks and returns when every pipeline has ended.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from supervisor.attempt import gateway_keys
from supervisor.attempt.checkpoints import Checkpoints
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.journal import Journal
from supervisor.attempt.recording import FOLDER, RecordedScheduler
from supervisor.attempt.results import RunResults
from supervisor.attempt.resume import earlier_starts, without
from supervisor.attempt.summary import Summary
from supervisor.attempt.sweep import hold, sweep
from supervisor.config.child_environment import secrets as secret_values
from supervisor.config.schema.tables import Config
from supervisor.config.sources import RESOLVED
from supervisor.errors import ExitCode, SetUpError
from supervisor.host.claims import VIRTUAL, Claim, NoPlace, claim_gpus
from supervisor.host.gpus.inventory import open_meter
from supervisor.host.gpus.meter import GpuMeter
from supervisor.host.ports import NoPortFree, Ports, metrics_listener
from supervisor.host.processes import guardian_link
from supervisor.host.processes.group import Processes
from supervisor.observe import control_socket
from supervisor.observe.event_log import EventLog
from supervisor.observe.logs import Logs
from supervisor.observe.notifications import Notifier
from supervisor.observe.status_builder import Constants
from supervisor.runtime.driver import Driver, Loop, Observer
from supervisor.runtime.engines import Engines
from supervisor.runtime.gateways import Gateways, Listeners
from supervisor.runtime.gpu_memory import GpuMemory, memory_rules, unmeasured_gpus, unmeasured_pipelines
from supervisor.runtime.group_lifecycle import GroupLifecycle, Groups
from supervisor.runtime.model_recipe import Models
from supervisor.runtime.operator_requests import OperatorRequests, StatusSource, Stopper
from supervisor.runtime.perform import Performer
from supervisor.runtime.ranks import Ranks
from supervisor.runtime.run_facts import ChildEnvironment, Pipelines, RunFacts, RunPaths
from supervisor.runtime.scheduler_spec import box_spec
from supervisor.runtime.snapshots import SharedMemory, TrainerOutput, folder_of, make_folders
from supervisor.runtime.startup import DetachedStart, Exposition, Options, ShowProgress, allow_descriptors, as_setup_error, prewarmed_pool
from supervisor.runtime.watch.heartbeat import keep_beating, stack_on_crash
from supervisor.runtime.watch.probes import Probes
from supervisor.runtime.watch.silence import TrainerSilence
from supervisor.scheduler import Scheduler
from trainers.protocol.ids import PipelineId
from trainers.remove_tree import remove_what_can_be

PROGRESS_S = 0.5


SWITCH_S: Final = 0.0005
"""The loop waits no longer for a thread that computes (a snapshot's headers): it may have to do so several times until it has answered."""


def run(config: Config, directory: RunDirectory, options: Options) -> Summary:
    """Run until every pipeline has ended or the operator stops it; nothing of the run lives afterwards. Raises SetUpError, UsageError."""
    guard = guardian_link.enter()
    allow_descriptors()
    sys.setswitchinterval(SWITCH_S)
    try:
        return anyio.run(_run, config, directory, options, guard, backend="asyncio", backend_options={"use_uvloop": True})
    except Exception as error:
        if (refused := as_setup_error(error, directory)) is None:
            raise
        raise refused from error


async def _run(config: Config, directory: RunDirectory, options: Options, guard: guardian_link.Guard) -> Summary:
    one_run = Run(config, directory, options, guard)
    with one_run.prepare() as machine:
        return await one_run.serve(machine, one_run.wire(machine))


@dataclass(frozen=True, slots=True)
class Machine:
    """What `prepare` has taken of this machine; given back at the end of the run."""

    facts: RunFacts
    logs: Logs
    journal: Journal
    meter: GpuMeter
    ports: Ports
    listeners: Listeners
    metrics: socket.socket | None  # listens for those who want the metrics


@dataclass(frozen=True, slots=True)
class Wired:
    """The objects of a run, connected."""

    scheduler: Scheduler
    recorded: RecordedScheduler
    results: RunResults
    driver: Driver
    processes: Processes
    engines: Engines
    performer: Performer
    probes: Probes
    silence: TrainerSilence
    status: StatusSource
    stopper: Stopper
    operator: OperatorRequests
    notifier: Notifier | None


class Run:
    """One run. `config` is the file's; pipelines that have finished in an earlier start of the attempt are not started again."""

    def __init__(self, config: Config, directory: RunDirectory, options: Options, guard: guardian_link.Guard) -> None:
        self._before = earlier_starts(directory, config)
        self._all, self._config = config, without(config, self._before.finished)
        self._directory, self._options, self._guard = directory, options, guard
        self._began_at = time.time()

    # -- first phase

    @contextlib.contextmanager
    def prepare(self) -> Iterator[Machine]:
        """Take logs, journal, shared memory, GPUs and ports; all of it is given back at the end. Raises SetUpError."""
        config, directory = self._config, self._directory
        swept = sweep(*(runs for runs in directory.path.parent.parent.iterdir() if runs.is_dir() and not runs.is_symlink()))
        with contextlib.ExitStack() as stack:
            stack.enter_context(stack_on_crash(directory.stack))
            logs = stack.enter_context(
                Logs(
                    directory.supervisor_log,
                    run=directory.run_id,
                    level=self._options.level or config.logging.level,
                    console=self._options.console,
                )
            )
            self._guard.log(directory.run_id, directory.supervisor_log)
            tables = [env for pipeline in config.pipeline for env in (pipeline.engine.env, pipeline.trainer.env)]
            for value in (value for env in (os.environ, *tables) for value in secret_values(env)):
                logs.secrets.register(value)
            if swept.killed or swept.removed:
                logs.log.warning("swept what an earlier run left", killed=swept.killed, removed=swept.removed)
            journal = Journal(directory.journal, time.time)
            stack.callback(journal.close)
            shm = self._shared_memory(journal, stack)
            meter = open_meter(config.host.gpus, config.host.virtual)
            stack.callback(meter.close)
            self._claim_gpus(meter, logs, stack)
            ports = Ports(
                *config.host.ports,
                run=directory.run_id,
                passed_over=lambda port, who: logs.log.warning("a port is taken; its window is passed over", port=port, holder=who),
            )
            stack.callback(ports.close)
            metrics = metrics_listener(config.host.metrics_port) if config.host.metrics_port is not None else None
            if metrics is not None:
                stack.enter_context(metrics)
            listeners = self._listeners(ports)
            stack.callback(listeners.close)
            keys = self._keys(listeners, logs)
            pipelines = Pipelines(config, meter.gpus, listeners.urls, keys)
            facts = RunFacts(pipelines, RunPaths(directory, shm), ChildEnvironment(dict(os.environ), directory.path))
            with self._accounted_for(journal, logs):
                yield Machine(facts, logs, journal, meter, ports, listeners, metrics)

    def _claim_gpus(self, meter: GpuMeter, logs: Logs, stack: contextlib.ExitStack) -> None:
        """Keep other supervisors, also of other users, off our GPUs until we end. Raises GpusTaken."""
        directory, host = self._directory, self._all.host
        file = self._options.file or str(directory.path / RESOLVED)
        claim = Claim(
            run=directory.run_id,
            name="/".join(directory.path.parts[-2:]),
            directory=str(directory.path),
            gpus=tuple(gpu.uuid or f"{VIRTUAL}{gpu.id} of {file}" for gpu in meter.gpus),
            labels=tuple(str(host.gpus[gpu.id] if isinstance(host.gpus, list) else gpu.id) for gpu in meter.gpus),
            pipelines=tuple(pipeline.name for pipeline in self._all.pipeline),
            file=file,
        )
        try:
            entry = claim_gpus(claim)
        except NoPlace as error:
            logs.log.warning("nothing keeps other supervisors off these GPUs", why=str(error))
            return
        stack.callback(entry.close)
        self._guard.sweep(entry.path)

    def _shared_memory(self, journal: Journal, stack: contextlib.ExitStack) -> Path:
        shm = self._directory.shared_memory(self._config.host.shm)
        self._guard.sweep(shm)
        journal.shared(shm)
        stack.callback(remove_what_can_be, shm)
        try:
            make_folders(shm, (PipelineId(pipeline.name) for pipeline in self._config.pipeline))
            stack.callback(os.close, hold(shm))
        except OSError as error:
            raise SetUpError(f"host.shm = {self._config.host.shm!r}: {shm} cannot be made there: {error.strerror}") from error
        return shm

    def _listeners(self, ports: Ports) -> Listeners:
        try:
            return Listeners.open(ports, [PipelineId(pipeline.name) for pipeline in self._config.pipeline])
        except (OSError, NoPortFree) as error:
            raise SetUpError(f"host.ports = {list(self._config.host.ports)}: {error}") from error

    def _keys(self, listeners: Listeners, logs: Logs) -> dict[PipelineId, str]:
        open_to_all = frozenset(PipelineId(table.name) for table in self._config.pipeline if not table.gateway.auth)
        keys = gateway_keys.keep(self._directory.path, listeners.urls, open_to_all)
        for key in keys.values():
            logs.secrets.register(key)
        for pipeline in sorted(open_to_all):
            logs.log.warning(
                "its gateway answers everybody (auth = false): every user of this machine, and every web page", pipeline=pipeline
            )
        return keys

    @contextlib.contextmanager
    def _accounted_for(self, journal: Journal, logs: Logs) -> Iterator[None]:
        """Close the journal after an orderly end, or when nothing was started: then there is nothing to sweep."""
        try:
            yield
        except Exception as error:
            if self._directory.begun:
                logs.log.critical("a bug of ours ends the run", exc_info=error)
            else:
                journal.end()
            raise
        journal.end()

    # -- second phase

    def wire(self, machine: Machine) -> Wired:
        """Make scheduler, driver, performers and observers, and connect them. Nothing is started, and nothing is decided yet."""
        config, directory, logs, facts = self._config, self._directory, machine.logs, machine.facts
        results = RunResults(directory, logs, self._before)
        checkpoints = {
            id: Checkpoints.open(directory.checkpoints(id), table.trainer.keep_checkpoints, results.write_failed)
            for id, table in facts.pipelines
        }
        spec = box_spec(config, tuple(gpu.id for gpu in machine.meter.gpus), {id: record.known for id, record in checkpoints.items()})
        now = time.monotonic()
        scheduler = Scheduler(spec, now)
        recorded = RecordedScheduler(scheduler, now, directory.path / FOLDER)
        notifier = self._notifier(facts, logs)
        driver = Driver(scheduler, recorded, time.monotonic, self._observers(logs, results, notifier), logs.secrets.hide)
        loop = Loop(driver.feed, driver.spawn_task, logs.log)

        def left_over(pid: int, command: bytes) -> None:
            line = command.replace(b"\0", b" ").decode(errors="replace").strip()
            logs.log.warning("a process was left to us that belongs to no living group; it is ended", pid=pid, command=line)

        processes = Processes(prewarmed_pool(facts, logs) if config.host.prewarm else None, left_over=left_over)
        groups = Groups(processes, machine.journal)
        lifecycle = GroupLifecycle(groups, loop, machine.ports, config.health, logs.secrets.hide)
        transports = {id: SharedMemory(folder_of(facts.paths.shm, id), facts.paths.model(table)) for id, table in facts.pipelines}
        output = TrainerOutput(transports, checkpoints)
        ranks = Ranks(facts, lifecycle, loop, output)
        limits = {id: limit for id, table in facts.pipelines if (limit := table.trainer.watchdog_s) is not None}
        engines = Engines(facts, lifecycle, transports, logs.log)
        memory = GpuMemory(machine.meter, groups, loop, memory_rules(config, machine.meter.gpus, exact=not machine.meter.measures_others))
        performer = Performer(
            feed=driver.feed,
            lifecycle=lifecycle,
            engines=engines,
            ranks=ranks,
            gateways=Gateways(facts, lifecycle, loop, machine.listeners),
            models=Models(facts, groups, logs.secrets.hide),
            memory=memory,
            output=output,
        )
        constants = Constants(
            run=directory.run_id,
            started_at=self._began_at,
            gpus=machine.meter.gpus,
            unmeasured=unmeasured_gpus(config),
            urls=facts.pipelines.urls,
        )
        status = StatusSource(constants, scheduler, memory, self._before)
        stopper = Stopper(loop)
        return Wired(
            scheduler=scheduler,
            recorded=recorded,
            results=results,
            driver=driver,
            processes=processes,
            engines=engines,
            performer=performer,
            probes=Probes(loop, scheduler, engines, config.health),
            silence=TrainerSilence(loop, scheduler, groups, ranks, limits),
            status=status,
            stopper=stopper,
            operator=OperatorRequests(scheduler, loop, stopper, status),
            notifier=notifier,
        )

    def _notifier(self, facts: RunFacts, logs: Logs) -> Notifier | None:
        command = self._config.notify.command
        if command is None:
            return None
        environment = facts.environment.inherited("trainer").kept
        return Notifier(command, environment, self._directory.run_id, self._directory.path, logs.secrets.hide, logs.log)

    def _observers(self, logs: Logs, results: RunResults, notifier: Notifier | None) -> list[Observer]:
        """Return the observers in the order in which they see each event."""
        observers: list[Observer] = [EventLog(logs.log)]
        if self._options.metrics is not None:
            observers.append(self._options.metrics)
        observers.append(results)
        if notifier is not None:
            observers.append(notifier)
        if self._options.detach:
            observers.append(DetachedStart(self._guard, self._directory.path, results.of))
        return observers

    # -- third phase

    async def serve(self, machine: Machine, wired: Wired) -> Summary:
        """Run until every pipeline has ended; then nothing of the run lives any more. Raises SetUpError."""
        async with anyio.create_task_group() as signals:
            await signals.start(wired.stopper.on_signals)  # before the first child: whoever is stopped now is stopped in order
            signals.start_soon(keep_beating, self._guard, self._config.health, machine.logs.log, name="heartbeat")
            async with wired.processes.running(), anyio.create_task_group() as tasks:
                self._log_unmeasured(machine)
                async with wired.engines:
                    await self._drive(machine, wired, tasks)
                tasks.cancel_scope.cancel()
            signals.cancel_scope.cancel()
        wired.recorded.close()
        if wired.recorded.lost:
            machine.logs.log.warning("lines of the recording were lost: the disk is full, or was", lines=wired.recorded.lost)
        summary = wired.results.conclude(wired.scheduler)
        if wired.notifier is not None:
            await wired.notifier.end(summary.exit, f"{summary.run} has ended (exit {summary.exit}): {ExitCode(summary.exit).meaning}")
        return summary

    def _log_unmeasured(self, machine: Machine) -> None:
        log = machine.logs.log
        if not machine.meter.measures_others:
            log.info("virtual GPUs: memory of our own engines and trainers is measured, other programs' is unmeasured")
        for pipeline in unmeasured_pipelines(self._config):
            log.warning(
                "memory of its engines is unmeasured on virtual GPUs: they are taken for asleep by their word, no promise is made",
                pipeline=pipeline,
            )

    async def _drive(self, machine: Machine, wired: Wired, tasks: anyio.abc.TaskGroup) -> None:
        """Start what runs beside the loop, then the loop."""
        await tasks.start(control_socket.serve, self._directory.control_socket, wired.operator.answer)
        tasks.start_soon(wired.processes.reap_forever, name="reap orphans")
        tasks.start_soon(wired.processes.watch_pool, name="watch the pool")
        tasks.start_soon(wired.probes.run, name="probes")
        tasks.start_soon(wired.silence.run, name="silence of trainers")
        if wired.notifier is not None:
            tasks.start_soon(wired.notifier.run, name="notifications")
        if machine.metrics is not None and self._options.metrics is not None:
            await self._serve_metrics(machine.metrics, self._options.metrics, wired, tasks)
            machine.logs.log.info("metrics", url=f"http://127.0.0.1:{self._config.host.metrics_port}/metrics")
        if self._options.progress is not None:
            tasks.start_soon(_show_progress, self._options.progress, wired.status, machine.logs, name="progress")
        self._begin(machine, wired)
        for pipeline, url in machine.facts.pipelines.urls.items():
            machine.logs.log.info("gateway", pipeline=pipeline, group="gateway", url=url)
        await wired.driver.run(wired.performer, tasks)

    async def _serve_metrics(self, listener: socket.socket, metrics: Exposition, wired: Wired, tasks: anyio.abc.TaskGroup) -> None:
        from supervisor.observe import metrics_server  # the server's half of aiohttp is for those who want it

        async def page() -> bytes:
            return metrics.page(wired.scheduler, await wired.status.measured(), wired.probes.longest_lag)

        await tasks.start(metrics_server.serve, listener, page)

    def _begin(self, machine: Machine, wired: Wired) -> None:
        """Say that the run begins: nothing more can refuse it, and nothing of it is started yet."""
        directory, log = self._directory, machine.logs.log
        directory.begin(self._all, self._options.source)
        wired.results.begin(wired.scheduler)
        self._options.begun()
        log.info("run starts", directory=str(directory.path), resumed=directory.resumed, pid=os.getpid())
        for pipeline in sorted(self._before.finished):
            log.info("has done all its steps before; it is not started again", pipeline=pipeline)


async def _show_progress(show: ShowProgress, status: StatusSource, logs: Logs) -> None:
    while True:
        await anyio.sleep(PROGRESS_S)
        for line in show(status.now(), time.monotonic()):
            logs.say(line)
