"""A run from its start to its end: everything is put together here, and taken apart again whatever happens."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import anyio
import anyio.abc

from supervisor.attempt.checkpoints import Checkpoints
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.journal import Journal
from supervisor.attempt.recording import FOLDER, Recorded
from supervisor.attempt.results import Account
from supervisor.attempt.resume import Behind, behind, left, seen_before
from supervisor.attempt.summary import Summary
from supervisor.attempt.sweep import sweep
from supervisor.config.child_environment import choose
from supervisor.config.child_environment import secrets as secret_values
from supervisor.config.schema.tables import Config
from supervisor.errors import SetUpError
from supervisor.host.gpus.inventory import open_meter
from supervisor.host.gpus.meter import GpuMeter
from supervisor.host.ports import NoPortFree, Ports, metrics_listener
from supervisor.host.processes import guardian_link
from supervisor.host.processes.group import Processes
from supervisor.host.processes.pool import PrewarmedPool
from supervisor.observe import control_socket
from supervisor.observe.event_log import Narrator
from supervisor.observe.logs import Logs
from supervisor.observe.sanitize import one_line
from supervisor.observe.status import Snapshot
from supervisor.observe.status_builder import snapshot
from supervisor.runtime import unmeasured
from supervisor.runtime.context import Site
from supervisor.runtime.driver import Driver
from supervisor.runtime.options import Options
from supervisor.runtime.perform import Performer
from supervisor.runtime.probes import Probes
from supervisor.runtime.refusal import refusal
from supervisor.runtime.requests import act
from supervisor.runtime.scheduler_spec import box_spec
from supervisor.runtime.startup import Starting
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event, Stop
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.ids import PipelineId

PROGRESS_S = 0.5


def run(config: Config, directory: RunDirectory, options: Options) -> Summary:
    """Until every pipeline has ended or the operator stops it; nothing of it lives afterwards. Raises SetUpError, UsageError."""
    guard = guardian_link.enter()
    _allow_descriptors()
    try:
        return anyio.run(_run, config, directory, options, guard, backend="asyncio", backend_options={"use_uvloop": True})
    except Exception as error:
        if (refused := refusal(error, directory)) is None:
            raise
        raise refused from error


def _allow_descriptors() -> None:
    """As many as we may have: each port that is reserved for a group takes one, and each child some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _run(config: Config, directory: RunDirectory, options: Options, guard: guardian_link.Guard) -> Summary:
    before = behind(directory, config)
    swept = [sweep(runs) for runs in directory.path.parent.parent.iterdir() if runs.is_dir() and not runs.is_symlink()]
    with contextlib.ExitStack() as stack:
        logs = stack.enter_context(
            Logs(directory.supervisor_log, run=directory.run_id, level=config.logging.level, console=options.console)
        )
        for value in secret_values(os.environ):
            logs.secrets.register(value)
        for old in swept:
            if old.killed or old.removed:
                logs.log.warning("swept what an earlier run left", killed=old.killed, removed=old.removed)
        journal = Journal(directory.journal, time.time)
        stack.callback(journal.close)
        shm = directory.shared_memory(config.host.shm)
        guard.sweep(shm)
        journal.shared(shm)
        stack.callback(shutil.rmtree, shm, ignore_errors=True)
        _make_shared_memory(shm, config)
        meter = open_meter(config.host.gpus, config.host.virtual)
        ports = Ports(
            *config.host.ports,
            run=directory.run_id,
            passed_over=lambda port, who: logs.log.warning("a port is taken; its window is passed over", port=port, holder=who),
        )
        scraped = metrics_listener(config.host.metrics_port) if config.host.metrics_port is not None else None
        stack.callback(meter.close)
        stack.callback(ports.close)
        the_run = _Run(config, directory, options, logs, journal, guard, before)
        the_run.scraped = stack.enter_context(scraped) if scraped is not None else None
        try:
            summary = await the_run.go(meter, ports, shm)
        except Exception as error:
            if directory.begun:
                logs.log.critical("a bug of ours ends the run", exc_info=error)
            else:
                journal.end()  # nothing was started, so there is nothing to sweep
            raise
        journal.end()
        return summary


def _make_shared_memory(shm: Path, config: Config) -> None:
    """Clean at every start: snapshots are worth nothing after the run that made them."""
    try:
        shutil.rmtree(shm, ignore_errors=True)
        for pipeline in config.pipeline:
            (shm / pipeline.name).mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise SetUpError(f"host.shm = {config.host.shm!r}: {shm} cannot be made there: {error.strerror}") from error


class _Run:
    """One run's parts while it goes on."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        options: Options,
        logs: Logs,
        journal: Journal,
        guard: guardian_link.Guard,
        before: Behind,
    ) -> None:
        """Of `config` the pipelines that have finished before are not started; `before` knows what came of them."""
        self._whole, self._config = config, left(config, before.finished)
        self._directory, self._options = directory, options
        self._logs, self._journal, self._guard, self._before = logs, journal, guard, before
        self._began, self._began_at = time.monotonic(), time.time()
        self._stops = 0
        self._account = Account(directory, logs, before)
        self._starting = Starting() if options.detach else None
        self.scraped: socket.socket | None = None  # listens for those who want the metrics

    async def go(self, meter: GpuMeter, ports: Ports, shm: Path) -> Summary:
        config = self._config
        checkpoints = {
            PipelineId(p.name): Checkpoints.open(self._directory.checkpoints(p.name), p.trainer.keep_checkpoints, self._account.refused)
            for p in config.pipeline
        }
        remembered = {name: record.known for name, record in checkpoints.items()} if self._directory.resumed else {}
        spec = box_spec(config, tuple(gpu.id for gpu in meter.gpus), remembered)
        now = time.monotonic()
        scheduler = Scheduler(spec, now)
        recorded = Recorded(scheduler, now, self._directory.path / FOLDER)
        driver = Driver(recorded, time.monotonic, self._heard)
        self._scheduler, self._driver = scheduler, driver
        processes = Processes(self._prewarm() if config.host.prewarm else None)
        async with anyio.create_task_group() as signals:
            await signals.start(self._signals)  # before the first child: whoever is stopped now is stopped in order
            async with processes.running(), anyio.create_task_group() as tasks:
                self._site = Site(
                    config=config,
                    directory=self._directory,
                    shm=shm,
                    processes=processes,
                    ports=ports,
                    meter=meter,
                    journal=self._journal,
                    log=self._logs.log,
                    environ=dict(os.environ),
                    feed=driver.feed,
                    spawn_task=tasks.start_soon,
                    checkpoints=checkpoints,
                    published={name: remembered[name].version if remembered else 0 for name in checkpoints},
                )
                await self._act(tasks)
                tasks.cancel_scope.cancel()
            signals.cancel_scope.cancel()
        recorded.close()
        if recorded.lost:
            self._logs.log.warning("lines of the recording were lost: the disk is full, or was", lines=recorded.lost)
        return self._account.conclude(scheduler)

    async def _act(self, tasks: anyio.abc.TaskGroup) -> None:
        """With everything in place: until every pipeline has ended."""
        site = self._site
        self._narrator = Narrator(site, self._scheduler)
        performer = Performer(site)
        self._memory = performer.memory
        try:
            performer.gateways.open_listeners()
        except (OSError, NoPortFree) as error:
            raise SetUpError(f"host.ports = {list(self._config.host.ports)}: {error}") from error
        if not site.meter.measures_others:
            self._logs.log.info("virtual GPUs: memory of our own engines and trainers is measured, other programs' is unmeasured")
        for pipeline in unmeasured.pipelines(self._config):
            self._logs.log.warning(
                "memory of its engines is unmeasured on virtual GPUs: they are taken for asleep by their word, no promise is made",
                pipeline=pipeline,
            )
        async with performer.engines:
            await self._conduct(performer, tasks)
        performer.gateways.close()

    async def _conduct(self, performer: Performer, tasks: anyio.abc.TaskGroup) -> None:
        await tasks.start(control_socket.serve, self._directory.control_socket, self._operator)
        tasks.start_soon(self._site.processes.reap_forever, name="reap orphans")
        probes = Probes(self._site, self._scheduler, performer.engines)
        tasks.start_soon(probes.run, name="probes")
        await self._expose(probes, tasks)
        if self._options.progress is not None:
            tasks.start_soon(self._show_progress, name="progress")
        self._begin()
        for pipeline, url in self._site.urls.items():
            self._logs.log.info("gateway", pipeline=pipeline, group="gateway", url=url)
        await self._driver.run(performer, tasks)

    def _begin(self) -> None:
        """Nothing more can refuse the run, and nothing of it is started yet."""
        directory = self._directory
        directory.begin(self._whole, self._options.source)
        self._account.begin(self._scheduler)
        self._options.begun()
        self._logs.log.info("run starts", directory=str(directory.path), resumed=directory.resumed, pid=os.getpid())
        for pipeline in sorted(self._before.finished):
            self._logs.log.info("has done all its steps before; it is not started again", pipeline=pipeline)

    async def _expose(self, probes: Probes, tasks: anyio.abc.TaskGroup) -> None:
        """`/metrics`, where it is asked for."""
        metrics = self._options.metrics
        if self.scraped is None or metrics is None:
            return
        from supervisor.observe import metrics_server  # the server's half of aiohttp is for those who want it

        async def page() -> bytes:
            await self._memory.look_on()
            return metrics.page(self._scheduler, self._snapshot(), probes.longest_lag)

        await tasks.start(metrics_server.serve, self.scraped, page)
        self._logs.log.info("metrics", url=f"http://127.0.0.1:{self._config.host.metrics_port}/metrics")

    def _prewarm(self) -> PrewarmedPool:
        env = {**choose("trainer", os.environ).kept, "PYTHONPATH": OUR_PATH, "PYTHONUNBUFFERED": "1"}
        tag = f"{self._directory.run_id}:prewarm:1"
        return PrewarmedPool(env=env, tag=tag, directory=self._directory.path, log=self._directory.path / "logs" / "prewarm.log")

    # -- what is heard

    def _heard(self, event: Event, actions: list[Action], now: float) -> None:
        self._narrator.tell(event, actions, now)
        if self._options.metrics is not None:
            self._options.metrics.tell(self._scheduler)
        self._account.heard(event, self._scheduler, now)
        if self._starting is not None:
            self._tell_who_waits(self._starting)

    def _tell_who_waits(self, starting: Starting) -> None:
        verdict = starting.look(self._scheduler.pipelines.values())
        if verdict is None:
            return
        self._starting = None
        if verdict.failed is None:
            text = "everything has started; the run goes on without this terminal"
        else:
            told = self._account.of(verdict.failed)
            text = f"supervise: {verdict.failed.id} failed for good: {told.why} (see {self._directory.path / told.log}); the others go on"
        self._guard.ready(int(verdict.code), one_line(text))
        self._guard.leave_terminal()

    async def _signals(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                self._stop(self._stops + 1, signal.Signals(number).name)

    def _stop(self, level: int, why: str) -> None:
        self._stops = min(max(level, self._stops + (level > self._stops)), 3)
        how = {1: "gracefully", 2: "without waiting", 3: "by killing"}[self._stops]
        self._logs.log.warning(f"stopping {how}", why=why)
        self._driver.feed(Stop(level=self._stops))

    async def _operator(self, request: control_socket.Request) -> control_socket.Reply:
        match request:
            case control_socket.StatusRequest():
                await self._memory.look_on()
                return control_socket.StatusReply(self._snapshot())
            case control_socket.StopRequest(level=level):
                self._stop(level, "operator")
                return control_socket.Done("stopping")
            case control_socket.ActRequest():
                return act(self._scheduler, self._driver.feed, request)

    def _snapshot(self) -> Snapshot:
        now = snapshot(self._site, self._scheduler, self._memory, started_at=self._began_at, uptime_s=time.monotonic() - self._began)
        return seen_before(self._before, now)

    async def _show_progress(self) -> None:
        assert self._options.progress is not None
        while True:
            await anyio.sleep(PROGRESS_S)
            for line in self._options.progress(self._snapshot(), time.monotonic()):
                self._logs.say(line)
