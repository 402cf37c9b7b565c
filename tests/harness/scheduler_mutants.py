# ruff: noqa: E501 - a mutant is a line of a table
"""Bugs put into the scheduler by hand. Each must be caught: `bin/check --long mutants scheduler`; a few of them in `test_mutants.py`.

Where a name begins with RB-D or B, it is behaviour of the incumbent scheduler that must not come back.
"""

from tests.harness.mutation import Mutant

S = "supervisor/scheduler/"
LEASES, OPERATORS, SCHEDULER, INFLIGHT, FLEET = (f"{S}{name}.py" for name in ("leases", "operators", "scheduler", "inflight", "records"))
RESTARTS, ROLLOUTS = (f"{S}{name}.py" for name in ("restarts", "rollouts"))
RESERVATIONS, PLANNER = (f"{S}planning/{name}.py" for name in ("reservations", "planner"))
VIEW = f"{S}planner_view.py"
GROUPS, ENDINGS, TRAINERS, GATEWAYS, GRANTS, DEMAND = (
    f"{S}groups/{name}.py" for name in ("engines", "engine_teardown", "trainers", "gateways", "trainer_leases", "rollout_requests")
)
DEFECTS, WANTED = "tests/supervisor/scheduler/test_incumbent_defects.py", "tests/supervisor/scheduler/test_incumbent_demand.py"
RULES, PLANS, LIFE = (
    "tests/supervisor/scheduler/test_engines.py",
    "tests/supervisor/scheduler/test_planner.py",
    "tests/supervisor/scheduler/test_life.py",
)
PUBLISH, LENT = "tests/supervisor/scheduler/test_publishing.py", "tests/supervisor/scheduler/test_leases.py"
WORLD = "tests/supervisor/simulate/test_world.py"
PUBLISHES = f"{S}groups/publishes.py"
LAUNCHED = "tests/supervisor/scheduler/test_launched_ranks.py"
AGREEMENT = "tests/supervisor/scheduler/test_rank_agreement.py"

MUTANTS = {
    # -- leases
    "a fenced GPU is lent": Mutant(LEASES, "return self._leases[gpu] is None and gpu not in self._fences and", "return self._leases[gpu] is None and", WORLD, "faults", "fences are no part of what is free"),
    "leases derived from state": Mutant(VIEW, "return frozenset(lease.gpu for lease in ctx.leases.leases if lease.priority is not Priority.ROLLOUT)", "return frozenset(gpu for pipeline in ctx.fleet.pipelines.values() if pipeline.trainer.grant is not None for gpu in pipeline.trainer.grant.gpus)", WORLD, "faults", "what a dead trainer held counts as free before it measures empty"),
    "granted before measured": Mutant(GROUPS, "        case Paused():\n            engine.pausing.released = True", "        case Paused():\n            _measured_free(ctx, engine)", WORLD, "faults or completes", "an engine's word is taken for a measurement"),
    "a trainer's death frees at once": Mutant(TRAINERS, "            trainer.teardown.exited, trainer.pids = True, ()", "            trainer.teardown.exited, trainer.pids = True, ()\n            ctx.leases.release(trainer.id)", WORLD, "faults", "its GPUs are lent on before they measure empty"),
    "a lease ends when left, unmeasured": Mutant(GRANTS, "        lease.leaving = ctx.now\n", "        lease.leaving = ctx.now\n        ctx.leases.release(trainer.id)\n", WORLD, "completes", "the ranks' word is taken for a measurement"),
    "an exchange frees what it keeps": Mutant(TRAINERS, "    ctx.leases.release(trainer.id, gpus)\n", "    ctx.leases.release(trainer.id)\n", WORLD, "critics", "the measurement of what is given up releases everything"),
    "an exchange forgets what it gives up": Mutant(GRANTS, "    if before is not None:  #", "    if before is None and before is not None:  #", WORLD, "critics", "found by the simulation in November 2026: GPUs of the old role stayed leased to nobody's grant"),
    "nobody measures at the start": Mutant(SCHEDULER, "            self._ctx.leases.fence(gpu, NOT_MEASURED)", "            pass", WORLD, "completes", "a GPU that somebody else uses would be lent"),
    "a fence is lifted by any answer": Mutant(SCHEDULER, "            if gpu not in held:\n                self._ctx.leases.clear(gpu)", "            if gpu >= 0:\n                self._ctx.leases.clear(gpu)", WORLD, "faults", ""),
    "a fence is for ever": Mutant(SCHEDULER, "        if not fenced or self._fence_op is not None or ctx.stopping:", "        if not fenced or self._fence_op is not None or ctx.stopping or self._fence_looked is not None:", WORLD, "faults", "a GPU that clears is lent to nobody"),
    "a wrong life's lease": Mutant(FLEET, "            self.life = EngineLife(Incarnation(self.life.incarnation + 1))\n", "            self.life = EngineLife(self.life.incarnation)\n", RULES, "f21", "answers of the dead are taken for the living"),
    # -- reservations
    "the reservation is forgotten": Mutant(RESERVATIONS, "            blocked |= needed\n", "            pass\n", WORLD, "completes", "engines stay where a trainer waits"),
    "RB-D9 an aged reservation is overtaken": Mutant(RESERVATIONS, "return (max(0.0, self.priority - (now - self.since) // ageing), self.since, self.pipeline)", "return (self.priority, self.since, self.pipeline)", DEFECTS, "d9", "no ageing"),
    "RB-D9 a younger request takes what an older waits for": Mutant(RESERVATIONS, "        claimed |= needed\n", "        pass\n", DEFECTS, "d9", "narrow requests overtake a wide one for ever"),
    "the youngest first": Mutant(RESERVATIONS, "// ageing), self.since, self.pipeline)", "// ageing), -self.since, self.pipeline)", DEFECTS, "d9", ""),
    "RB-D2 paused in vain": Mutant(RESERVATIONS, "            reserved.append(request)\n            blocked |= needed\n", "            reserved.append(request)\n        blocked |= needed\n", DEFECTS, "d2", "engines are shrunk for a request that cannot be met"),
    "a fenced GPU is reserved": Mutant(RESERVATIONS, "        if any(fenced(gpu) for gpu in needed):", "        if False:", WORLD, "faults", "a reservation whose grant is not possible"),
    "a stuck engine's GPU is reserved": Mutant(SCHEDULER, "        out = stuck | ctx.leases.fences.keys()", "        out = ctx.leases.fences.keys() - stuck", WORLD, "faults", "a reservation whose grant is not possible"),
    "a request outlives its trainer": Mutant(TRAINERS, "    trainer.op = trainer.request = trainer.publishing = trainer.grant = None\n", "    trainer.op = trainer.publishing = trainer.grant = None\n", WORLD, "faults", "GPUs are kept for the dead"),
    "an exchange outlives its lease": Mutant(GRANTS, "            trainer.request = None\n            reason =", "            reason =", LENT, "withdrawn", "it waits to keep what was given back"),
    "RB-D4 a refused exchange has released": Mutant(GRANTS, "        refused = _why_no_exchange(ctx, pipeline, roles)\n", "        refused = _why_no_exchange(ctx, pipeline, roles)\n        ctx.leases.release(trainer.id)\n", DEFECTS, "d4", ""),
    "an exchange may wait for a trainer": Mutant(GRANTS, "lease.priority is not Priority.ROLLOUT and lease.holder != pipeline.trainer.id:", "lease.priority is Priority.INITIALIZATION and lease.holder != pipeline.trainer.id:", DEFECTS, "d4", "two who exchange wait for each other for ever"),
    "RB-D13 a second request waits for ever": Mutant(GRANTS, "    if trainer.request is not None or (trainer.grant is not None and not exchange):", "    if trainer.request is not None:", DEFECTS, "d13", ""),
    "RB-D3 roles are looked up unseen": Mutant(GRANTS, "    if unknown := [role for role in roles if role not in known]:", "    if unknown := [role for role in roles if role not in known and role in known]:", DEFECTS, "d3", "one bad request ends the scheduler for all"),
    "RB-D1 granted when asked to leave": Mutant(SCHEDULER, "            if ctx.leases.all_free(needed):\n", "            if ctx.leases.all_free(needed) or all(ctx.fleet.engine(lease.holder).state is EngineState.PAUSING for gpu in needed if (lease := ctx.leases.lease(gpu)) is not None and isinstance(lease.holder, EngineId)):\n", DEFECTS, "d1", ""),
    "one rank leaves for all": Mutant(GRANTS, "    if len(lease.offloaded) == trainer.world_size and lease.leaving is None:", "    if lease.leaving is None:", LENT, "every_rank", "a lease ends while other ranks hold memory"),
    "RB-D16 leaving twice is a crash": Mutant(GRANTS, "    if lease is None or lease.call != call:\n", "    assert lease is not None\n    if lease.call != call:\n", DEFECTS, "d16", ""),
    # -- demand
    "demand dies with the gateway": Mutant(GATEWAYS, "    for rollout in pipeline.rollouts.values():\n        rollout.gateway_lost(ctx.now)\n", "    pipeline.rollouts.clear()\n", WANTED, "f9", ""),
    "samples delivered before a gateway's death come again": Mutant(ROLLOUTS, "        self.before += self.done\n", "", WANTED, "f9_a_dead", ""),
    "a new gateway is not told": Mutant(ROLLOUTS, "        self.known = self.ordered = False\n", "        self.known = False\n", WANTED, "f9_a_dead", "rollouts that were open stay unknown to it"),
    "nothing wanted while a request waits": Mutant(ROLLOUTS, "        wanted = max(self.target - self.finished, present)", "        wanted = self.target - self.finished", WANTED, "s12", ""),
    "demand ends while tools run": Mutant(ROLLOUTS, "        return sum(self.ended.values()) if self.trajectories else self.before + self.done\n", "        return self.before + self.done\n", AGREEMENT, "trajectory", "engines are taken away between two samples of a trajectory"),
    "a rank that dies in a lease is waited for": Mutant(TRAINERS, "    if trainer.grant is not None and rank not in trainer.grant.offloaded:\n", "    if False:\n", LAUNCHED, "inside_a_lease", "the lease lasts until its limit"),
    "a launcher's ranks are as many as its GPUs": Mutant(TRAINERS, "                pipeline.trainer.world_size = size\n", "                pass\n", LAUNCHED, "lease_ends", ""),
    "ranks that ask apart are let go": Mutant(DEMAND, "its == first or not its[0]", "True or not its[0]", AGREEMENT, "ask_apart", "half of the samples, and nobody is told"),
    "the first rank that leaves closes it": Mutant(DEMAND, "    if len(rollout.left) == pipeline.trainer.world_size:\n", "    if rollout.left:\n", AGREEMENT, "demand_of_all", ""),
    "who waits to be compared is not told of a stop": Mutant("supervisor/scheduler/groups/trainer_stop.py", "    for number in trainer.asked:\n", "    for number in ():\n", AGREEMENT, "stops", "a rank hangs until it is killed"),
    "B-13 demand is what has been asked for": Mutant(ROLLOUTS, "        wanted = max(self.target - self.finished, present)", "        wanted = present", WANTED, "b13", "the incumbent's: no engine until a request, no request until an engine"),
    "B-13 quiet is finished": Mutant(ROLLOUTS, "            return min(wanted, 1)", "            return 0", WANTED, "quiet", "a client that thinks is forgotten"),
    "quiet counts in full": Mutant(ROLLOUTS, "            return min(wanted, 1)", "            return wanted", WANTED, "quiet", ""),
    "S12 demand counts twice": Mutant(ROLLOUTS, "        wanted = max(self.target - self.finished, present)", "        wanted = self.target - self.finished + present", WANTED, "s12", "S12-INFLATE-WINDOW"),
    "RB-D14 a drain undoes progress": Mutant(ROLLOUTS, "self.waiting, self.in_flight, self.done = progress.waiting, progress.in_flight, progress.done", "self.waiting, self.in_flight, self.done = progress.waiting, progress.in_flight, progress.done if progress.in_flight else 0", DEFECTS, "d14", ""),
    "RB-D15 a late report opens it again": Mutant(GATEWAYS, "        if rollout is None and report.implicit:", "        if rollout is None:", DEFECTS, "d15", ""),
    "an implicit rollout never ends": Mutant(GATEWAYS, "        if rollout.implicit and number not in still_open:", "        if False:", WANTED, "pr16", ""),
    "a dead trainer's demand": Mutant(TRAINERS, "            pipeline.rollouts.pop(number, None)\n", "", WANTED, "f9_hooks", ""),
    "a dead trainer's rollouts stay at the gateway": Mutant(TRAINERS, "    pipeline.forget = True\n", "", WANTED, "f9_hooks", ""),
    "E589866 opened when all are routable": Mutant(FLEET, "        return any(engine.route == self.published for engine in self.engines.values())", "        return all(engine.route == self.published for engine in self.engines.values())", WANTED, "e589866", ""),
    "opened before an engine is routed": Mutant(TRAINERS, "rollout.known and pipeline.routable:", "rollout.known:", WANTED, "opened_when", ""),
    "opened before the gateway has it": Mutant(TRAINERS, "not rollout.implicit and rollout.known and pipeline.routable:", "not rollout.implicit and pipeline.routable:", WANTED, "opened_when", ""),
    "closing is never answered": Mutant(GATEWAYS, "    for number in tuple(pipeline.closing):\n        closed(ctx, pipeline, number)\n", "", WORLD, "faults", "the trainer waits for a gateway that is dead"),
    "RB-D5 a holder without demand keeps its GPUs": Mutant(SCHEDULER, "leave = engine.held or must_leave(", "leave = engine.held or (bool(pipeline.rollouts) or any(gpu in blocked for gpu in engine.gpus)) and must_leave(", DEFECTS, "d5", ""),
    "0D5FD0A demand needs an estimate": Mutant(VIEW, "NOTHING_UNFINISHED if unfinished == 0 else", "NOTHING_UNFINISHED if unfinished == 0 or not any(rollout.expected for rollout in pipeline.rollouts.values()) else", WANTED, "0d5fd0a", ""),
    "engines leave when nobody wants their GPU": Mutant(PLANNER, "    return engine not in wanted and any(gpu in wanted_gpus for gpu in gpus)\n", "    return engine not in wanted\n", WANTED, "stay_awake", "a pause is paid for nothing"),
    # -- groups
    "an exit of an old life": Mutant(SCHEDULER, "        if record.incarnation != event.incarnation:\n            return  # of a life before this one\n", "        if not isinstance(record, Engine) and record.incarnation != event.incarnation:\n            return  # of a life before this one\n", RULES, "f21", "skips an incarnation check"),
    "a trainer that waits while it should stop": Mutant("supervisor/scheduler/groups/trainers.py", "            trainer_stop.begin(ctx, pipeline)", "            ctx.tell(pipeline, trainer_stop.Stopping(1.0))", LIFE, "waits_for_nothing", "what it waits for is never answered"),
    "what a stopping trainer saves": Mutant(SCHEDULER, "        elif state is TrainerState.STOPPING:\n            trainer_stop.handle_message", "        elif False:\n            trainer_stop.handle_message", LIFE, "waits_for_nothing", "is deaf to it"),
    "a trainer's message of an old life": Mutant(SCHEDULER, "                if event.incarnation == (pipeline := self._ctx.fleet.pipelines[event.pipeline]).trainer.incarnation:\n                    self._trainer_said", "                if True:\n                    self._trainer_said", LIFE, "a_message_of_a_dead_trainer_is_nothing", "skips an incarnation check"),
    "a gateway's exit of an old life": Mutant(SCHEDULER, "        if record.incarnation != event.incarnation:\n            return  # of a life before this one\n", "        if not isinstance(record, Gateway) and record.incarnation != event.incarnation:\n            return  # of a life before this one\n", LIFE, "a_late_exit_of_a_dead_gateway_or_trainer_ends_nobody", "skips an incarnation check"),
    "a trainer's exit of an old life": Mutant(SCHEDULER, "        if record.incarnation != event.incarnation:\n            return  # of a life before this one\n", "        if not isinstance(record, Trainer) and record.incarnation != event.incarnation:\n            return  # of a life before this one\n", LIFE, "a_late_exit_of_a_dead_gateway_or_trainer_ends_nobody", "skips an incarnation check"),
    "a gateway's report of an old life": Mutant(SCHEDULER, "                if event.incarnation == pipeline.gateway.incarnation and not pipeline.gateway.dying:", "                if not pipeline.gateway.dying:", LIFE, "a_report_of_a_dead_gateway_is_nothing", "skips an incarnation check"),
    "figures of a gateway that is not ready yet are dropped": Mutant(SCHEDULER, "pipeline.gateway.incarnation and not pipeline.gateway.dying:", "pipeline.gateway.incarnation and pipeline.gateway.up:", WANTED, "before_its_gateway_is_ready", "the client hangs"),
    "counts of an old life": Mutant(GATEWAYS, "        if engine is not None and engine.incarnation == load.incarnation and", "        if engine is not None and", LIFE, "counts_of_a_dead_engine_are_not_those_of_its_next_life", "skips an incarnation check"),
    "a pause without a drain": Mutant(FLEET, "        return pipeline.gateway.up and self.life.routing.used", "        return False", WORLD, "completes", "what runs on the engine is lost"),
    "published before old routes are gone": Mutant(TRAINERS, "        if not older and all(route is None or route >= publishing.version for route in ordered) and not _losing(ctx, pipeline):", "        if True:", PUBLISH, "published_is_told_when_no_older_route_is_left", "publish without unrouting"),
    "a route under way is forgotten by a publish": Mutant(TRAINERS, "        if not older and all(route is None or route >= publishing.version for route in ordered) and not", "        if not older and not", PUBLISH, "a_route_under_way_is_taken_back_before_published_is_told", ""),
    "published while an engine is being lost": Mutant(TRAINERS, " and not _losing(ctx, pipeline):", ":", PUBLISH, "died_with_older", "found by the simulation in November 2026 (critics:18): a request could go to a dying engine with old weights"),
    "a late route is waited for": Mutant(GROUPS, "    if routing.ordered is not None and (routing.ordered != pipeline.published", "    if False and (routing.ordered != pipeline.published", PUBLISH, "a_route_under_way_is_taken_back_before_published_is_told", ""),
    "weights change under a route": Mutant(GROUPS, "    if engine.route is not None:\n        _order_unroute(ctx, pipeline, engine)\n    elif leave:", "    if leave:", RULES, "", "publish without unrouting"),
    "routed before the restored weights are published": Mutant(GROUPS, "    elif not pipeline.trainer.restored:", "    elif False:", LIFE, "a_trainer_that_comes_back_publishes_what_it_restored_before_anything_is_routed", ""),
    "woken with old weights": Mutant(GROUPS, "    version = pipeline.published\n    engine.op = ctx.do(lambda id: Wake", "    version = engine.version or Version(0)\n    engine.op = ctx.do(lambda id: Wake", PUBLISH, "wake_with", ""),
    "weights go while they are loaded": Mutant(PUBLISHES, "sorted(pipeline.snapshots - loading - {pipeline.published})", "sorted(pipeline.snapshots - {pipeline.published})", PUBLISH, "a_snapshot_lives_while_it_is_published_or_loaded_and_no_longer", ""),
    "weights are never dropped": Mutant(SCHEDULER, "            publishes.drop_snapshots(ctx, pipeline)\n", "            pass\n", PUBLISH, "a_snapshot_lives_while_it_is_published_or_loaded_and_no_longer", "shared memory fills"),
    "an end that was asked for is a failure": Mutant(GROUPS, "    if not engine.can(Transition.FAIL) or engine.state is EngineState.STOPPING:", "    if not engine.can(Transition.FAIL):", LIFE, "the_end_of_an_engine_that_was_asked_for_is_no_failure", ""),
    "wakes on a GPU leased to another": Mutant(GROUPS, "    if not ctx.leases.all_free(engine.gpus):", "    if False:", WORLD, "completes", ""),
    "RB-D6 a hung pause holds everybody up": Mutant(GROUPS, "def _rise(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:\n", "def _rise(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:\n    if any(other.state is EngineState.PAUSING for other in ctx.fleet.engines):\n        return\n", DEFECTS, "d6", "the incumbent's barrier"),
    "RB-D7 a waiter stops all rebalancing": Mutant(SCHEDULER, "        wanted = self._wanted\n", "        waiter = any(not rollout.announced for pipeline in ctx.fleet.pipelines.values() for rollout in pipeline.rollouts.values())\n        wanted = frozenset(e.id for e in ctx.fleet.engines if e.awake) if waiter and any(e.awake for e in ctx.fleet.engines) else self._wanted\n", DEFECTS, "d7", ""),
    "RB-D8 a wake goes on when its pipeline ends": Mutant(GROUPS, "    ctx.inflight.forget(engine.op)\n    engine.op = engine.life.routing.ordered = None\n    engine.transition(transition, ctx.now)", "    if transition is Transition.FAIL:\n        ctx.inflight.forget(engine.op)\n    engine.op = engine.life.routing.ordered = None\n    engine.transition(transition, ctx.now)", LIFE, "late_answer", "its answer is believed, and GPUs have no owner"),
    "an ended pipeline's engines live on": Mutant(ENDINGS, "    return pipeline.ended or (ctx", "    return (ctx", WANTED, "b13a", ""),
    "RB-D10 one failure ends the run": Mutant(GROUPS, "        fail(ctx, engine, Cause.ACTION, f\"{type(action).__name__} failed: {reason}\")\n", "        fail(ctx, engine, Cause.ACTION, f\"{type(action).__name__} failed: {reason}\")\n        from supervisor.scheduler.operators import stop as end\n\n        end(ctx, 2)\n", DEFECTS, "d10", "the incumbent's fail-fast"),
    # -- what is under way
    "an operation is answered twice": Mutant(INFLIGHT, "        awaited = self._awaited.pop(id, None)\n        if awaited is None:", "        awaited = self._awaited.get(id)\n        if awaited is None:", WORLD, "faults", ""),
    "no deadline": Mutant(INFLIGHT, "if awaited.deadline <= now]", "if awaited.deadline <= now - 1e9]", LIFE, "never_answered", "what hangs, hangs for ever"),
    "nobody wakes it for a deadline": Mutant(INFLIGHT, "        return min((awaited.deadline for awaited in self._awaited.values()), default=None)", "        return None", WORLD, "faults", ""),
    "nobody wakes it for an alarm": Mutant(SCHEDULER, "for time in (self._ctx.alarm, self._ctx.inflight.deadline) if time", "for time in (self._ctx.inflight.deadline,) if time", WORLD, "faults", ""),
    "what was given up is still awaited": Mutant(INFLIGHT, "        if id is not None:\n            self._awaited.pop(id, None)", "        pass", WORLD, "faults", "a late answer of a failed group is believed"),
    # -- trainers
    "any rank decides": Mutant(TRAINERS, "        case _ if rank != 0:", "        case _ if False:", LIFE, "only_rank_0_decides", ""),
    "stragglers are waited for": Mutant(TRAINERS, "    if first is not None and alive and ctx.due(", "    if False and ctx.due(", LIFE, "ranks_end_together", ""),
    "a lease without a limit": Mutant(TRAINERS, "    if ctx.due(lease.since + limit):", "    if False:", LENT, "a_lease_has_a_limit", ""),
    "a restart does not publish what it restores": Mutant(TRAINERS, "    trainer.restored = pipeline.published == 0 and trainer.steps_done == 0\n", "    trainer.restored = True\n", LIFE, "a_trainer_that_comes_back_publishes_what_it_restored_before_anything_is_routed", ""),
    "a checkpoint is not counted": Mutant(TRAINERS, "            trainer.steps_done = step + 1\n", "", LIFE, "a_trainer_that_comes_back_publishes_what_it_restored_before_anything_is_routed", "a restart begins from the start"),
    "one rank's end is everybody's": Mutant(TRAINERS, "    elif len(trainer.exits) == trainer.members:", "    elif trainer.exits:", LIFE, "ranks_end_together", ""),
    "exits of the last life": Mutant(TRAINERS, "    trainer.exits.clear()\n    trainer.first_exit = None\n", "", LIFE, "ranks_end_together", ""),
    "a rank that does not end gives its GPUs back": Mutant(TRAINERS, "        ctx.leases.fence(gpu, f\"a rank of", "        str(f\"a rank of", LENT, "leaves_behind", ""),
    "memory that stays is not fenced": Mutant(TRAINERS, "        ctx.leases.fence(gpu, f\"memory stays", "        str(f\"memory stays", LENT, "leaves_behind", ""),
    "a trainer restarts for ever": Mutant(TRAINERS, "    wait = trainer.budget.fail(ctx.now, salt=trainer.incarnation)\n", "    wait: float | None = 1.0\n", LIFE, "a_late_exit_of_a_dead_gateway_or_trainer_ends_nobody", ""),
    "two publishes at once": Mutant(PUBLISHES, "    if trainer.publishing is not None:\n        ctx.tell(", "    if trainer.publishing is not None and trainer.publishing.adopted:\n        ctx.tell(", PUBLISH, "one_publish_at_a_time", ""),
    "memory after a lease is forgiven": Mutant(TRAINERS, "    if trainer.state is TrainerState.RUNNING:\n        fail(ctx, pipeline, f\"left its lease", "    if trainer.state is TrainerState.COLD:\n        fail(ctx, pipeline, f\"left its lease", LENT, "memory_that_stays_after_a_lease_is_the_trainers_failure", ""),
    # -- gateways
    "routes outlive their gateway": Mutant(GATEWAYS, "        engine.life.routing, engine.life.load = Routing(), Load()\n", "        engine.life.routing, engine.life.load = Routing(engine.route), Load()\n", WORLD, "faults", ""),
    "orders outlive their gateway": Mutant(GATEWAYS, "    _forget_orders(ctx, pipeline)\n    ctx", "    ctx", WORLD, "faults", ""),
    "gateways have one life": Mutant(GATEWAYS, "    gateway.incarnation = Incarnation(gateway.incarnation + 1)\n", "", LIFE, "a_report_of_a_dead_gateway_is_nothing", ""),
    "a gateway restarts for ever": Mutant(GATEWAYS, "    if gateway.failures > MAX_FAILURES:", "    if False:", LIFE, "a_gateway_that_keeps_dying_fails_its_pipeline", ""),
    "who is stuck is given up": Mutant("supervisor/scheduler/groups/rollout_requests.py", "engine.state is EngineState.RETIRED for", "engine.state in (EngineState.RETIRED, EngineState.STUCK) for", LIFE, "stuck_engines_are_waited_for", "an error where a late answer would come"),
    "nobody hears that it is hopeless": Mutant(GATEWAYS, "    if reason != pipeline.gateway.hopeless:", "    if False:", LIFE, "who_cannot_be_served_is_told", ""),
    "a rollout without hope waits": Mutant(TRAINERS, "        elif not rollout.announced and not rollout.implicit and hopeless(pipeline):", "        elif False:", LIFE, "who_cannot_be_served_is_told", ""),
    "an order that fails is forgiven": Mutant(SCHEDULER, "                if isinstance(answer, ActionFailed):  # a gateway", "                if False:  # a gateway", WORLD, "faults", ""),
    # -- restarts
    "ends alike are never seen": Mutant(RESTARTS, "        self.ended_alike = end is not None and end == self.last_end\n", "", LIFE, "ends_alike_twice", "a script's own error is tried four times"),
    "any two ends are alike": Mutant(RESTARTS, "        end = (step, error) if error else None\n", "        end = (step, error)\n", LIFE, "ends_alike_twice", "two kills retire a trainer"),
    "a reset remembers the last end": Mutant(RESTARTS, "        self.last_end, self.ended_alike = None, False\n", "", LIFE, "ends_alike_twice", ""),
    "old failures count for ever": Mutant(RESTARTS, "        while self.failures and now - self.failures[0] > self.window:", "        while False:", LIFE, "failures_long_ago_are_forgotten", ""),
    "no back-off": Mutant(RESTARTS, "        return 1.0 + (ceiling - 1.0) * _fraction(salt * 31 + count)", "        return 0.0", LIFE, "pauses_between", ""),
    "a retired engine starts again": Mutant(ENDINGS, "        engine.transition(Transition.GIVE_UP, ctx.now)\n", "        pass\n", RULES, "f18", ""),
    # -- operators
    "a paused pipeline starts engines": Mutant(OPERATORS, "                pipeline.suspended = event.verb != \"resume\"", "                pass", LIFE, "a_paused_pipeline_starts_nothing_until_it_is_resumed", ""),
    "resume forgets": Mutant(OPERATORS, "                engine.held = event.verb != \"resume\"", "                engine.held = engine.held or event.verb != \"resume\"", RULES, "resume", ""),
    "newer weights are no new chance": Mutant(GROUPS, "            engine.budget.reset()\n", "            continue\n", PUBLISH, "come_back_with_newer_ones", "one bad publish ends a pipeline whose trainer has come back with good weights"),
    "every publish is a new chance": Mutant(GROUPS, "        if engine.failed_with is not None and len", "        if len", PUBLISH, "could_not_start", "an engine that cannot start is started for ever"),
    "weights are to blame whoever serves with them": Mutant(GROUPS, "    if any(engine.version == pipeline.published and engine.completed for", "    if any(engine.version == pipeline.published and engine.completed < 0 for", PUBLISH, "another_serves_with", "an engine that is broken itself is started for ever"),
    "reset keeps the count": Mutant(OPERATORS, "        engine.budget.reset()\n", "", LIFE, "who_cannot_be_served_is_told", ""),
    "a graceful stop kills": Mutant(TRAINERS, "        if patient and not ctx.due(ctx.stop_at):\n            return\n", "", LIFE, "a_graceful_stop_lets_the_trainer_end_by_itself_and_then_ends_it", ""),
    "a graceful stop waits for ever": Mutant(TRAINERS, "        if patient and not ctx.due(ctx.stop_at):\n            return\n", "        if patient:\n            return\n", LIFE, "a_graceful_stop_lets_the_trainer_end_by_itself_and_then_ends_it", ""),
    "the third stop is as patient": Mutant(OPERATORS, "        if level >= 3:\n            _hurry(ctx)\n", "", LIFE, "an_impatient_stop_does_not_wait", ""),
    "stopped and started again": Mutant(GATEWAYS, "    elif not pipeline.ended and not ctx.stopping and pipeline.model_ready", "    elif not pipeline.ended and pipeline.model_ready", LIFE, "nothing_is_started_while_everything_stops", ""),
    # -- planner
    "RB-D12 no more than a first engine each": Mutant(PLANNER, "    table.bids()\n    table.leftovers()\n", "", DEFECTS, "d12", "not work-conserving"),
    "RB-D11 a bound on the work": Mutant(PLANNER, "    table.leftovers()\n", "    table.leftovers()\n    if sum(len(bidder.granted) for bidder in bidders) > 1000:\n        raise RuntimeError(\"too many activations\")\n", DEFECTS, "d11", ""),
    "no first engine for those without": Mutant(PLANNER, "        if all(bidder.spare for bidder in self.bidders):", "        if True:", PLANS, "", ""),
    "no cap": Mutant(PLANNER, "        return min(len(self.bundles), -(-self.unfinished // self.slots))", "        return len(self.bundles)", PLANS, "promises or tail", ""),
    "fresh engines are taken": Mutant(PLANNER, "            if any(spare.fresh for spare in hit):", "            if False:", PLANS, "fresh", "thrash"),
    "reserved GPUs are planned": Mutant(VIEW, "    closed = dict.fromkeys(blocked, Denied.RESERVED)\n", "    closed: dict[GpuId, Denied] = {}\n", LENT, "gets_another", "plans fight a reservation"),
    "more than two start at once": Mutant(GROUPS, "    if sum(other.state is EngineState.STARTING for other in ctx.fleet.engines) >= ctx.box.rules.max_starting:", "    if False:", WORLD, "completes", ""),
}  # fmt: skip
