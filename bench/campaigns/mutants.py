# ruff: noqa: E501 - a mutant is a line of a table
"""Each defence taken out in turn, in a copy of the checkout: the tests named beside it must then fail.

    bin/check --long mutants [groups | watchers | gpu | scheduler | NAME …]      all that this commit has not done yet, or these

Of engine groups, and of whoever watches, the lists are here, of the scheduler in tests/harness/scheduler_mutants.py. A mutant that survives is a promise without a test.
"""

import sys

from bench.campaigns.harness.campaign import run
from tests.harness import scheduler_mutants
from tests.harness.mutation import Mutant, Survived, killer

HEALTH, PROBES, GROUPS = "engines/lifecycle/health.py", "supervisor/runtime/watch/probes.py", "supervisor/scheduler/groups/engines.py"
LIFE, ENGINES, SCHEDULER = "supervisor/runtime/group_lifecycle.py", "supervisor/runtime/engines.py", "supervisor/scheduler/scheduler.py"
FLEET = "engines/gateway/core/engines.py"
TABLES = "supervisor/config/schema/tables.py"
PURE, RULES, HOST = "tests/engines/lifecycle/test_health.py", "tests/supervisor/scheduler/test_engines.py", "tests/runs/test_groups.py"
ENDINGS, ENDS = "supervisor/scheduler/groups/engine_teardown.py", "tests/supervisor/scheduler/test_engine_teardown.py"
PORTS, WINDOWS = "supervisor/host/ports.py", "tests/supervisor/host/test_ports.py"
STRANGERS, METRICS, CONTEXT = "supervisor/host/foreign.py", "supervisor/views/metrics.py", "supervisor/scheduler/context.py"
GUARDIAN, LINK, LINEAGE = (f"supervisor/host/processes/{name}.py" for name in ("guardian", "guardian_link", "lineage"))
POOL, GROUP, BEATS, SILENCE = (
    "supervisor/host/processes/pool.py",
    "supervisor/host/processes/group.py",
    "supervisor/runtime/watch/heartbeat.py",
    "supervisor/runtime/watch/silence.py",
)
AT_GUARDIAN, AT_POOL, AT_LEFT, WATCHED = (
    "tests/supervisor/host/test_guardian.py",
    "tests/supervisor/host/test_pool.py",
    "tests/supervisor/host/test_left_over.py",
    "tests/runs/test_watch.py",
)


MUTANTS = {
    "f1 the threshold": Mutant(HEALTH, "if streak < self.rates.limit(probe.kind):", "if streak < 1:", PURE, "f1"),
    "f1 the threshold, host": Mutant(HEALTH, "if streak < self.rates.limit(probe.kind):", "if streak < 1:", HOST, "f1_r11"),
    "f2 the streak of requests": Mutant(HEALTH, "doubted = look.failures >= self.rates.request_failures and", "doubted = False and", HOST, "every_request_fails"),
    "f2 the silence of requests": Mutant(HEALTH, "return bool(pulse.look.in_flight) and now", "return False and now", HOST, "generations_hang"),
    "f2 a full engine is no healthy one": Mutant(HEALTH, "        if problem is None and not self._silent(pulse, now):\n            return None", "        if problem is None:\n            return self._good(pulse, probe, now)", PURE, "f2_a_canary"),
    "f2 the canary at the start": Mutant("supervisor/runtime/kinds/engine_kind.py", "await control.canary(within)", "pass", HOST, "green_light"),
    "f3 one probe at a time": Mutant(HEALTH, "if pulse.asked is not None or pulse.condemned:", "if pulse.condemned:", PURE, "f3"),
    "f4 the default limits": Mutant(TABLES, "progress_timeout_s: Seconds = 25.0", "progress_timeout_s: Seconds = 0.5", PURE, "f4"),
    "f5 descendants": Mutant(LINEAGE, "if stat.pid not in known and stat.start >= born", "if False and stat.start >= born", HOST, "f5_r15"),
    "f6 ports before confirmed": Mutant(LIFE, "if isinstance(group, EngineId) and (held :=", "if False and (held :=", "tests/runs/test_lives.py", "f6_no_engine"),
    "f6 unconfirmed is stuck": Mutant(GROUPS, "case GroupGone(confirmed=True):", "case GroupGone(confirmed=_):", RULES, "f6_not"),
    "f6 stuck keeps its lease": Mutant(ENDINGS, "engine.transition(Transition.UNCONFIRMED, ctx.now)", "engine.transition(Transition.UNCONFIRMED, ctx.now); ctx.leases.release(engine.id)", RULES, "f6"),
    "f6 stuck withholds what it had no lease of": Mutant(ENDINGS, "    ctx.leases.withhold(engine.gpus, engine.id, f\"{engine.id} is stuck: {note}\")\n", "", ENDS, "f6_one_that_died_asleep"),
    "f5 nobody has it while it is measured": Mutant("supervisor/scheduler/leases.py", "and gpu not in self._fences and gpu not in self._withheld", "and gpu not in self._fences", ENDS, "f5_nobody"),
    "f6 the deadline of an end": Mutant(ENDINGS, "limit = limits.end + limits.release  #", "limit = 1e9  #", ENDS, "f6_an_end"),
    "f6 the deadline of its measurement": Mutant(ENDINGS, "within=limits.release), limits.release + limits.order)", "within=limits.release), 1e9)", ENDS, "f6_an_end"),
    "f6 an end that fails is stuck": Mutant(GROUPS, "        engine_teardown.unconfirmed(ctx, engine, Cause.ACTION, reason)\n", "        pass\n", ENDS, "f6_an_end"),
    "f6 a port of a stranger": Mutant(LIFE, "                if port is None:\n", "                if False:\n", HOST, "f6_a_strangers"),
    "f6 who has left home is no stranger": Mutant(STRANGERS, "    return False  # it is below us", "    return True  # it is below us", "tests/supervisor/host/test_foreign.py"),
    "f6 who was seen in the group is no stranger": Mutant(STRANGERS, "return pid not in own and (", "return (", "tests/supervisor/host/test_foreign.py"),
    "f5 memory before the next life": Mutant(ENDINGS, "    if not engine.teardown.exited:\n        limit = limits.end", "    if engine.teardown.exited:\n        finish(ctx, engine)\n    elif not engine.teardown.exited:\n        limit = limits.end", RULES, "f5_memory"),
    "f5 memory of one that died asleep": Mutant(ENDINGS, "    elif not ctx.leases.held_by(engine.id):  #", "    elif False:  #", ENDS, "f5"),
    "f5 memory of others on a lent GPU": Mutant(ENDINGS, "if leases.lease(gpu) is None and gpu not in fences)", "if gpu not in fences)", ENDS, "f5_what"),
    "f7 a port that is passed over is told once": Mutant(PORTS, "        if port not in self._reported:", "        if True:", WINDOWS, "told_once"),
    "f7 another supervisor's ports": Mutant(PORTS, "elsewhere = other\n                    continue\n                blocked", "continue\n                blocked", WINDOWS, "another_supervisor"),
    "f7 ports that can be bound": Mutant(PORTS, "blocked = next((port for port in window if not can_bind(port)), None)", "blocked = None", "tests/supervisor/host/test_ports.py", "passed_over_and_its_holder"),
    "f8 identity of the listener": Mutant("engines/control.py", "if status not in (401, 403):", "if False:", HOST, "f8"),
    "f9 an exit of any member": Mutant(SCHEDULER, "        if record.incarnation != event.incarnation:\n            return  # of a life before this one\n", "        if record.incarnation != event.incarnation:\n            return  # of a life before this one\n        if isinstance(record, Engine) and event.member != 0:\n            return\n", HOST, "f9_r4 and per-gpu-2"),
    "f9 an exit in the tree": Mutant(LIFE, "if exit_.index is None and not live.stopping:", "if False:", HOST, "f9_a_process"),
    "f9 collateral before it is ready": Mutant(CONTEXT, "for index in range(members) if", "for index in range(len(engine.pids)) if", ENDS, "collateral"),
    "f9 unrouted first": Mutant(ENDINGS, "if not engine.teardown.lost_sent and pipeline.gateway.up:", "if False:", RULES, "f9"),
    "f10 the state after the probe": Mutant(HEALTH, "(look.incarnation, look.epoch) != (probe.incarnation, probe.epoch)", "False", PURE, "f10"),
    "f10 nothing asked in a control call": Mutant(HEALTH, "if look.mode is Mode.QUIET:\n            return None", "if False:\n            return None", PURE, "f10"),
    "f11 the version that is said": Mutant(GROUPS, "version != action.version:", "False:", HOST, "f11_r7 and wrong"),
    "f11 the published version": Mutant(GROUPS, "    elif engine.version != pipeline.published:\n        engine.transition(Transition.STALE", "    elif False:\n        engine.transition(Transition.STALE", "tests/supervisor/simulate", "seed"),
    "f12 memory after a release": Mutant("supervisor/runtime/gpu_memory.py", "held = [verdict for verdict in verdicts if not verdict.empty]", "held = [verdict for verdict in verdicts if False]", HOST, "releases_nothing"),
    "f12 the deadline of a pause's measurement": Mutant(GROUPS, "    if isinstance(action, StopGroup | Measure) and engine.state is not EngineState.PAUSING:", "    if isinstance(action, Measure) and engine.state is EngineState.PAUSING:\n        pass\n    elif isinstance(action, StopGroup | Measure):", ENDS, "f12"),
    "f13 the first wait": Mutant(HEALTH, "            pulse.quiet_since = now\n        pulse.forgiven", "            pulse.quiet_since = now\n        if look.epoch != before.epoch:\n            pulse.next = {kind: now + self.rates.every(kind) for kind in pulse.next}\n        pulse.forgiven", PURE, "f13"),
    "f14 nobody has to undo a pause": Mutant(HEALTH, "if look.mode is Mode.QUIET:\n            return None", "if look.mode is Mode.QUIET:\n            pulse.condemned = True\n            return None", PURE, "f14"),
    "f14 a dropped probe is over": Mutant(HEALTH, "        pulse.asked = None\n        pulse.next[probe.kind] =", "        if look is not None and look.epoch == probe.epoch:\n            pulse.asked = None\n        pulse.next[probe.kind] =", PURE, "f14"),
    "f15 probes beside each other": Mutant(PROBES, "tasks.start_soon(self._ask, probe, name=f\"probe {probe.engine}\")", "await self._ask(probe)", HOST, "f15"),
    "f16 routes belong to a life": Mutant(FLEET, "if known and known.incarnation > order.incarnation:", "if known:", HOST, "f16_a_restarted"),
    "f16 no room is no failure": Mutant(FLEET, "self.failures += not busy", "self.failures += 1", "tests/engines/gateway/test_dispatch.py", "f16_no_room"),
    "f17 the deadline of a start": Mutant(GROUPS, "limit = min(limits.start, limits.attempt)", "limit = 1e6", RULES, "f17"),
    "f18 the budget": Mutant("supervisor/scheduler/restarts.py", "if count > self.limit:", "if False:", RULES, "f18"),
    "f19 code 0": Mutant(LIFE, "        self._loop.feed(MemberExited(group=live.id, incarnation=live.incarnation, member=member.index, code=code, note=note, error=error))", "        if code:\n            self._loop.feed(MemberExited(group=live.id, incarnation=live.incarnation, member=member.index, code=code, note=note, error=error))", HOST, "f19"),
    "f20 two starts at a time": Mutant(GROUPS, "    if sum(other.state is EngineState.STARTING for other in ctx.fleet.engines) >= ctx.box.rules.max_starting:", "    if False:", RULES, "f20"),
    "f21 streaks die with a life": Mutant(HEALTH, "if pulse is None or pulse.look.incarnation != look.incarnation:", "if pulse is None:", PURE, "f21"),
    "f22 the guardian ends everything": Mutant("supervisor/host/processes/guardian.py", "        for pid in living:\n            kill(pid)", "        for pid in ():\n            kill(pid)", HOST, "f22"),
    "f21 verdicts about the dead": Mutant(SCHEDULER, "        if record.incarnation != incarnation:\n            return  # a verdict about the dead\n", "", RULES, "f21"),
    "f22 the next start sweeps": Mutant("supervisor/attempt/sweep.py", "killed = [one.pid for one in found if _kill(one.identity)]", "killed: list[int] = []", "tests/supervisor/attempt/test_journal.py", "swept or double_kill"),
    "f23 tokens of the dead": Mutant("engines/gateway/core/continuation.py", "\"input_ids\": [*request.prompt, *ids],", "\"input_ids\": [*request.prompt],", HOST, "f23"),
    "tokens that came before nonsense": Mutant("engines/gateway/upstream/engine_client.py", "            self._tell()\n            self._end(Broken", "            self._end(Broken", "tests/engines/gateway/test_upstream.py", "before_nonsense"),
    "a request on a connection that the engine is about to close": Mutant("engines/gateway/upstream/http_connection.py", " and self._loop.time() - self.heard < IDLE_S", "", "tests/engines/gateway/test_upstream.py", "not_for_long"),
    "a silent engine": Mutant("engines/gateway/upstream/http_connection.py", "now - self.heard > SILENCE_S", "False", "tests/engines/gateway/test_upstream.py", "silent"),
    "a parameter that kills engines": Mutant("engines/gateway/core/dispatch.py", "if request.params.get(name)]:", "if False]:", "tests/engines/gateway/test_dispatch.py", "do_not_survive"),
    "f24 our own lateness": Mutant(PROBES, "self.health.lagged(time.monotonic())", "pass", HOST, "f24"),
    "f24 our own lateness, pure": Mutant(HEALTH, "if self._late is not None and self._late >= probe.began:", "if False:", PURE, "f24"),
    "f25 killed before anything starts": Mutant(LIFE, "await (live.group.kill(limit) if action.kill else", "await (_nobody() if action.kill else", HOST, "f25 and one-1"),
    "r1 a program that cannot be executed": Mutant("supervisor/host/processes/child.py", "    if reply:\n", "    if False:\n", "tests/supervisor/host/test_processes.py", "failures_to_start"),
    "r10 liveness": Mutant(HEALTH, "return Kind.LIVENESS if pulse.next[Kind.LIVENESS] <= now else None", "return None", PURE, "hung_process"),
    "r15 KILL after the grace": Mutant("supervisor/host/processes/group.py", "        return await self.kill(kill_s)", "        return frozenset()", "tests/supervisor/host/test_processes.py", "stubborn"),
    "r18 memory of strangers": Mutant("supervisor/host/gpus/emptiness.py", "used = usage.total[gpu]", "used = sum(groups.values())", "tests/supervisor/host/test_emptiness.py", "within_residuals"),
    "the mass guard": Mutant(HEALTH, "if not pulse.rechecked and self._many():", "if False:", PURE, "all_probes_fail_once"),
    "tokens outweigh a probe": Mutant(HEALTH, "if problem == \"\" or pulse.sign > probe.began:", "if problem == \"\":", PURE, "tokens_outweigh or whoever"),
    "tokens instead of a probe": Mutant(HEALTH, "            pulse.next[kind] = now + self.rates.every(kind)\n\n    def _due", "            pass\n\n    def _due", PURE, "better_probe"),
    "a verdict is told once": Mutant(HEALTH, "        pulse.condemned = True\n", "", PURE, "told_once"),
    "a sleeping one is not asked for tokens": Mutant(HEALTH, "return Kind.ASLEEP if pulse.next[Kind.ASLEEP] <= now else None", "pass", PURE, "sleeping"),
    "sleeping ones are watched": Mutant(PROBES, ", EngineState.PAUSED: Mode.ASLEEP", "", HOST, "sleeping_engine_that_hangs"),
    "the attempt's deadline": Mutant(GROUPS, "max(0.0, min(limit, until - ctx.now))", "limit", RULES, "one_attempt"),
    "a stop ends a failure that waits": Mutant(GROUPS, "        ctx.close_fault(engine, \"stopped\")\n", "        pass\n", ENDS, "a_stop_while"),
    "an end of the run is no restart": Mutant(ENDINGS, "    if not failed or pipeline_ends(ctx, ctx.fleet.pipelines[engine.id.pipeline]):", "    if not failed:", ENDS, "a_stop_while"),
    "stuck at the end is told": Mutant(GROUPS, "        ctx.close_fault(engine, \"stuck\")\n", "        pass\n", ENDS, "stuck_at_the_end"),
    "asleep is well": Mutant(GROUPS, "        ctx.close_fault(engine, \"asleep\")\n", "", ENDS, "nobody_wants"),
    "a gentle end that fails is a failure": Mutant(ENDINGS, "        ctx.open_fault(engine, cause,", "        (lambda *_: None)(ctx, engine, cause,", ENDS, "gentle"),
    "a failure is counted at once": Mutant(METRICS, "                self._failed(fault)\n", "                pass\n", ENDS, "counted"),
    "nothing runs on a failed one": Mutant(GROUPS, "    engine.life.load.in_flight = 0  #", "    pass  #", ENDS, "pids_are_shown"),
    "a late report about a failed one": Mutant("supervisor/scheduler/groups/gateways.py", " and engine.can(Transition.STOP):  # else", ":  # else", ENDS, "pids_are_shown"),
    "r18 a stranger's memory, at the end of a lease": Mutant("supervisor/scheduler/groups/trainers.py", "if fence_foreign_memory(ctx, trainer.id, answer):", "if False:", ENDS, "r18_a_strangers_memory_is_no_fault_of_the_trainer"),
    "r18 a stranger's memory is nobody's fault": Mutant(GROUPS, "    if fence_foreign_memory(ctx, engine.id, held):", "    if False:", ENDS, "r18"),
    "r18 a stranger's GPU is fenced": Mutant("supervisor/scheduler/groups/lease_violations.py", "        ctx.leases.fence(gpu, f\"held by something that is not ours: {held.note}\")\n", "        pass\n", ENDS, "r18"),
    "r18 only who is certainly a stranger": Mutant("supervisor/runtime/gpu_memory.py", "if not self._names_ours or all(", "if all(", "tests/supervisor/host/test_gpus.py", "too_much"),
    "an operator's restart is free": Mutant(ENDINGS, "if engine.fault is not None and engine.fault.cause is Cause.OPERATOR:\n        return", "", RULES, "operators_restart"),
    "drain ends the processes": Mutant(GROUPS, "case EngineState.PAUSED if engine.drained:", "case EngineState.PAUSED if False:", RULES, "drain"),
    "an error of an engine is not ours": Mutant(ENGINES, "        except EngineError as error:  # not out of the task group, which would wrap it\n            failure.append(error)", "        except ZeroDivisionError:\n            pass", HOST, "f8"),
    "a lent GPU starts nothing": Mutant(GROUPS, "    if not ctx.leases.all_free(engine.gpus):", "    if False:", "tests/supervisor/simulate", "seed"),
}  # fmt: skip

WATCHERS = {
    "h4 silence has a limit": Mutant(GUARDIAN, "        if self._seconds >= limit:\n            return True", "", AT_GUARDIAN, "f27"),
    "h4 silence is said": Mutant(GUARDIAN, "        if not self._told and self._seconds >=", "        if False and self._seconds >=", AT_GUARDIAN, "f27"),
    "h4 who speaks again goes on": Mutant(GUARDIAN, "if registered.beats != self._beats or registered.watchdog == 0.0", "if registered.watchdog == 0.0", AT_GUARDIAN, "speaks_again"),
    "h4 children are asked first": Mutant(GUARDIAN, "        kill(pid, signal.SIGTERM, signal.SIGCONT)", "        pass", AT_GUARDIAN, "f27"),
    "h4 the stack is written": Mutant(GUARDIAN, "for numbers in ((signal.SIGABRT, signal.SIGCONT), (signal.SIGKILL,)):", "for numbers in ((signal.SIGKILL,),):", AT_GUARDIAN, "f27"),
    "h4 the kernel, when the guardian is dead": Mutant(LINK, "self._deadman = Deadman(1.5 * limit_s + grace_s + LATER_S)", "pass", AT_GUARDIAN, "does_not_save_it"),
    "h4 a stopped guardian does not block us": Mutant(LINK, "    os.set_blocking(int(descriptor), False)\n", "", AT_GUARDIAN, "stopped_guardian"),
    "h4 the loop beats": Mutant(BEATS, "    guard.watch(health.watchdog_s, health.grace_s)\n", "    pass\n", WATCHED, "a_supervisor_that_is_stopped"),
    "h4 a silent pool is replaced": Mutant(POOL, "            if why := await server.fails_to_answer():", "            if why := \"\":", AT_POOL, "does_not_answer"),
    "h4 codes outlive the pool": Mutant(POOL, "        await self.end_server()  #", "        return Status()  #", AT_POOL, "codes_of_children"),
    "h4 a stopped rank": Mutant(SILENCE, "and stat.state == \"T\"", "and False", WATCHED, "stopped and rank"),
    "h4 a silent rank": Mutant(SILENCE, "if silent >= limit else", "if False else", WATCHED, "silent and rank"),
    "h4 who waits for us is not silent": Mutant(SILENCE, "if busy or waits_for_us(pipeline) or", "if busy or", WATCHED, "waits_for_us"),
    "h5 the mark": Mutant(LINEAGE, "    mark = _mark(pid)", "    mark = 0", AT_LEFT, "as_long_as"),
    "h5 the mark, in the sweep": Mutant(LINEAGE, "    mark = _mark(pid)", "    mark = 0", AT_LEFT, "double_kill"),
    "h5 the mark tells more than the tag": Mutant(LINEAGE, "return self.mark == mark_of_tag(tag) if self.mark else self.tag == tag", "return self.mark == mark_of_tag(tag) or self.tag == tag", "tests/supervisor/host/test_lineage.py", "mark"),
    "h5 the pool's children have their own": Mutant("supervisor/host/processes/pool_child.py", "    bootstrap.bear(order.mark)\n", "", AT_POOL, "marked"),
    "h5 who belongs to nobody": Mutant(GROUP, "            await self._end_strays()\n", "", AT_LEFT, "cannot_be_attributed"),
    "h5 the end without a guardian": Mutant(GROUP, "            survivors |= await self._end_left()\n", "", AT_LEFT, "without_a_guardian"),
}  # fmt: skip


NVML, METER, RESIDUALS, MEMORY = (
    f"supervisor/{name}.py" for name in ("host/gpus/nvml", "host/gpus/meter", "host/gpus/residuals", "runtime/gpu_memory")
)
COMMAND, KIND, KINDS = "engines/sglang/command.py", "supervisor/config/kinds/sglang.py", "supervisor/runtime/kinds/sglang.py"
BOXES, CARDS, KEPT, LINES = (
    "tests/runs/test_boxes.py",
    "tests/supervisor/host/test_gpus.py",
    "tests/supervisor/host/test_residuals.py",
    "tests/sglang/test_launch.py",
)
CHECKED = "tests/supervisor/config/test_sglang.py"

ON_GPUS = {
    "a1 the driver's reserve is nobody's": Mutant(
        NVML,
        "    return Memory(int(info.total), int(info.reserved), int(info.used))",
        "    return Memory(int(info.total), int(info.reserved), int(info.used) + int(info.reserved) + (1 << 30))",
        CARDS,
        "idle",
    ),
    "a1 h200 with defaults": Mutant(
        NVML,
        "        info = library.nvmlDeviceGetMemoryInfo(handle, version=MEMORY_V2)\n",
        "        info = library.nvmlDeviceGetMemoryInfo(handle)\n        info.reserved = 0\n        info.used += 1 << 30\n",
        BOXES,
        "every_box and h200",
    ),
    "a1 the baseline": Mutant(
        NVML, "            total[gpu] = used - self._baseline[gpu]\n", "            total[gpu] = used\n", CARDS, "baseline"
    ),
    "a1 a neighbour is no baseline": Mutant(
        NVML, "    baseline = 0 if strangers else memory.used\n", "    baseline = memory.used\n", CARDS, "baseline"
    ),
    "a2 the first leave has a cap of its own": Mutant(
        RESIDUALS,
        "            may_keep[holder] = self._rules.first.get((holder, gpu), 0)\n",
        "            may_keep[holder] = 0\n",
        BOXES,
        "every_box and a100",
    ),
    "a2 trainers are learned": Mutant(
        RESIDUALS, "return isinstance(holder, EngineId | TrainerId) and", "return isinstance(holder, EngineId) and", KEPT, "first_leave"
    ),
    "a2 the cap of one is nobody else's": Mutant(
        RESIDUALS, "most if group in known else min(most, groups.get(group, 0))", "most", KEPT, "nobody_elses"
    ),
    "a2 a context before the first lease": Mutant(
        RESIDUALS,
        "        may_keep |= {trainer: CONTEXT_BYTES for trainer in",
        "        {trainer: CONTEXT_BYTES for trainer in",
        KEPT,
        "before_its_first_lease",
    ),
    "a2 growth is told": Mutant(RESIDUALS, "(now > first + self._rules.allowance // 4 and now > first)", "False", KEPT, "each_group"),
    "a2 what settles is not learned": Mutant(
        MEMORY,
        "return not self.first or now >= self.since + SETTLED_S",
        "return True",
        "tests/supervisor/runtime/test_gpu_memory.py",
        "settled",
    ),
    "a3 whose memory it is": Mutant(
        NVML, "            if not _accounts_for(by_pid[gpu], total[gpu]):", "            if False:", CARDS, "whose"
    ),
    "a3 a container with defaults": Mutant(
        NVML, "            if not _accounts_for(by_pid[gpu], total[gpu]):", "            if False:", BOXES, "every_box and container"
    ),
    "a3 who has the context of the dead": Mutant(
        RESIDUALS, "            may_keep |= self._mistaken(gpu, lives)\n", "            pass\n", KEPT, "dead_engines"
    ),
    "a4 cuda's runtime on the loader's path": Mutant(
        COMMAND, "        if spec.libraries:\n", "        if False:\n", LINES, "memory_saver_finds"
    ),
    "a4 check loads the memory saver": Mutant(
        KIND, "    elif cuda.preload_problem is not None:\n", "    elif False:\n", CHECKED, "not_there"
    ),
    "a5 the driver's cuda": Mutant(KIND, "and cuda.needed * 1000 > cuda.driver:", "and False:", CHECKED, "too_old"),
    "b1 kernels' caches": Mutant(COMMAND, "        if spec.cache is not None:\n", "        if False:\n", LINES, "compiled"),
    "b2 several cards by index": Mutant(METER, "several = len(indices) == len(gpus) > 1", "several = False", CARDS, "children"),
    "b3 a sampled token": Mutant(KINDS, "        await control.canary(within, sampled=True)\n", "", BOXES, "sampled"),
    "b4 the caller's cards": Mutant(NVML, '(listed := environ.get("CUDA_VISIBLE_DEVICES")) is None', "True", CARDS, "auto_is"),
    "b4 a divided card": Mutant(
        NVML, "            if instances := _instances(library, handle):", "            if instances := []:", CARDS, "divided"
    ),
    "b7 quantised weights": Mutant(KIND, "    if flags := quantising(engine.args):", "    if flags := []:", CHECKED, "quantised"),
    "b8 the pool that became smaller": Mutant(KINDS, "has < self._wanted * (1 - POOL_SLACK):", "False:", BOXES, "pool"),
    "b9 graphs' backup": Mutant(COMMAND, '        ours["TMS_RETAIN_CPU_BACKUP"] = "1"', '        ours["X"] = "1"', LINES, "backed_up"),
    "a lost card is one card": Mutant(
        GROUPS, "    elif engine.teardown.exited and set(held.gpus) < set(engine.gpus):\n", "    elif False:\n", BOXES, "falls"
    ),
    "a neighbour is not waited for": Mutant(MEMORY, "(foreign and now >= began + FOREIGN_S)", "False", BOXES, "neighbour_who"),
    "who has left beside a neighbour is known": Mutant(
        MEMORY, "                if foreign:  #", "                if False:  #", CARDS, "a_strangers_when"
    ),
}
LISTS = {"groups": MUTANTS, "watchers": WATCHERS, "gpu": ON_GPUS, "scheduler": scheduler_mutants.MUTANTS}
EVERY = {**MUTANTS, **WATCHERS, **ON_GPUS, **scheduler_mutants.MUTANTS}


def kill(name: str) -> dict[str, object]:
    """Says which test did it, or that none did."""
    try:
        return {"killed_by": killer(EVERY[name])}
    except Survived as error:
        return {"killed_by": None, "survived": str(error)}


def main(words: list[str]) -> int:
    if unknown := [word for word in words if word not in LISTS and word not in EVERY]:
        raise SystemExit(f"no mutant {unknown[0]!r}, and no list of that name ({', '.join(LISTS)})")
    found: list[dict[str, object]] = []
    for name in (word for word in words if word in EVERY):  # by name: again, whatever was written down
        found.append({"case": name, **kill(name)})
        print(f"{name}: {found[-1]['killed_by'] or found[-1]['survived']}", flush=True)
    for part in [word for word in words if word in LISTS] or ([] if words else list(LISTS)):
        found += run(f"mutants_{part}", LISTS[part], kill)
    alive = [str(record["case"]) for record in found if record["killed_by"] is None]
    print(f"{len(found) - len(alive)} of {len(found)} mutants are caught{'; these survive: ' + ', '.join(alive) if alive else ''}")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
