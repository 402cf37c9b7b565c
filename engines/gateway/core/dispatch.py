"""This module decides which sample goes to which engine, and what becomes of it when the engine is drained, fails or dies.

`handle(event, now) -> list[events.Effect]`: nothing else decides anything in the gateway. What holds after every call:
an engine never has more than `slots` attempts of ours; an attempt starts only on a routed engine with the newest version;
each asker gets exactly one outcome; tokens that have reached us are never generated again (but for atomic requests, see `continuation`,
and for what `publish_policy` wants begun anew).
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from engines.gateway.core import attempts, continuation, events
from engines.gateway.core.attempts import PATIENCE, Attempts, StopMatch
from engines.gateway.core.engines import Engine, Engines
from engines.gateway.core.ordering.affinity import Affinity
from engines.gateway.core.ordering.forecast import Forecast
from engines.gateway.core.ordering.waiting import MAX_WAITING, Waiting
from engines.gateway.core.publish_policy import PublishPolicy
from engines.gateway.core.records import ABORTED, CANCELLED, CLOSED, MAX_CANCELLED, MAX_TOKENS, Attempt, Phase, Rollout, Sample
from engines.gateway.core.rollouts import Rollouts
from engines.gateway.core.samples import Failure, Outcome, Request, SampleKey, State, cut
from trainers.protocol import gateway_messages


class Dispatch:
    """The dispatch core of one pipeline. `seed`: the pipeline's. `eos`: token ids at which the model ends. `decode`: tokens to text, for stop
    strings at a seam (None: no tokenizer).

    `policy`: what becomes of samples in flight when weights are published. `prefix_slack`: see `Affinity`. `abort_patience`: see `attempts.PATIENCE`.
    `refused`: sampling parameters that the engines do not survive.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        eos: frozenset[int] = frozenset(),
        decode: continuation.Decode | None = None,
        max_waiting: int = MAX_WAITING,
        policy: PublishPolicy | None = None,
        prefix_slack: float | None = None,
        abort_patience: float = PATIENCE,
        refused: Collection[str] = (),
    ) -> None:
        self.engines = Engines()
        self.rollouts = Rollouts()
        self._seed, self._eos, self._decode = seed, eos, decode
        self._refused = refused
        self._policy = policy or PublishPolicy()
        self._attempts = Attempts(abort_patience)
        self._askers: dict[int, Sample] = {}
        self._forecast = Forecast()
        self._waiting = Waiting(self._forecast, Affinity(prefix_slack), max_waiting)
        self._hopeless = ""
        self._counter = 0
        self._effects: list[events.Effect] = []
        self._now = 0.0

    @property
    def deadline(self) -> float | None:
        """When it next wants a `Tick`, on the clock of `now`; None: only when something happens."""
        retry = self.engines.next_retry() if self._waiting else None
        dues = [due for due in (self._attempts.deadline, self.rollouts.deadline(), retry) if due is not None]
        return min(dues, default=None)

    def progress(self) -> gateway_messages.Progress:
        """Return the picture that the supervisor is sent: every open rollout and every engine that is routed or busy."""
        rollouts = self.rollouts.progress(lambda rollout: self._forecast.work(rollout, self._now))
        return gateway_messages.Progress(rollouts, self.engines.loads())

    def handle(self, event: events.Event, now: float) -> list[events.Effect]:
        """Take one event at `now` (seconds of a clock that never goes back). Returns what is to be done, in order."""
        self._now, self._effects = now, []
        match event:
            case events.Tokens():
                if not self._receive(event):
                    return self._effects
            case events.Ended():
                self._ended(event)
            case events.Ask():
                self._ask(event)
            case events.Leave():
                self._leave(event.asker)
            case events.Cancel():
                self._cancel(event)
            case events.Curtail():
                self._curtail(event.asker)
            case events.Tick():
                pass
            case _:
                self._order(event)
        self._expire()
        self._dispatch()
        return self._effects

    # ---- orders of the supervisor

    def _order(self, order: gateway_messages.Order) -> None:
        aborted: list[Attempt] = []
        newest = self.engines.newest
        match order:
            case gateway_messages.Route():
                if (replaced := self.engines.route(order)) is not None:
                    self._fail_over(replaced)
            case gateway_messages.Unroute():
                self.engines.unroute(order.engine, order.incarnation)
                self.engines.published(order.version)
            case gateway_messages.Drain():
                if (engine := self.engines.unroute(order.engine, order.incarnation)) is not None:
                    aborted = self._attempts.on(engine)
            case gateway_messages.Lost():
                if (engine := self.engines.unroute(order.engine, order.incarnation)) is not None:
                    self._fail_over(engine)
            case gateway_messages.OpenRollout():
                self._open(order)
            case gateway_messages.CloseRollout():
                aborted = self._close(order.rollout)
            case gateway_messages.Forget():
                self._forget()
            case gateway_messages.Hopeless():
                self._set_hopeless(order.reason)
        if self.engines.newest > newest:
            aborted += [one for one in self._attempts if one.sample and self._policy.must_stop(one.sample, self.engines.newest)]
        for attempt in aborted:
            self._abort(attempt)
        self._effects += self._attempts.promise(order.order, aborted)

    def _open(self, order: gateway_messages.OpenRollout) -> None:
        self._forecast.lengths.settle()
        rollout = self.rollouts.open(order.rollout, order.target, self._now)
        for sample in rollout.samples.values():
            if sample.state is State.WAITING:
                self._waiting.push(sample)

    def _close(self, number: int) -> list[Attempt]:
        rollout = self.rollouts.get(number)
        if rollout is None or rollout.phase is Phase.CLOSED:
            return []
        if rollout.phase is Phase.EXPECTED:
            self._end_expected(rollout, Failure(404, "rollout_closed", f"rollout {number} is closed"))
            return []
        self.rollouts.close(rollout)
        return self._end_early(list(rollout.samples.values()), CLOSED)

    def _cancel(self, event: events.Cancel) -> None:
        rollout = self.rollouts.get(event.rollout)
        if rollout is None:
            return
        if len(rollout.cancelled) < MAX_CANCELLED:
            rollout.cancelled.update(event.tokens)
        found = [rollout.samples.get(SampleKey(rollout.number, token)) for token in event.tokens]
        for attempt in self._end_early([sample for sample in found if sample is not None], CANCELLED):
            self._abort(attempt)

    def _end_early(self, samples: list[Sample], reason: Mapping[str, Any]) -> list[Attempt]:
        """End samples with what there is of them. Returns the attempts to abort first, of those that run."""
        running = []
        for sample in samples:
            if sample.outcome is not None:
                continue
            sample.closing = sample.closing or reason
            if sample.state is State.WAITING:
                self._complete(sample, sample.closing)
            elif sample.attempt is not None:
                running.append(sample.attempt)
        return running

    def _forget(self) -> None:
        failure = Failure(404, "rollout_closed", "the trainer has ended, and its rollouts with it")
        for rollout in self.rollouts.forget():
            for sample in list(rollout.samples.values()):
                if sample.state is not State.DONE:
                    self._discard(sample, failure)

    def _set_hopeless(self, reason: str) -> None:
        self._hopeless = reason
        if reason:
            failure = Failure(503, "no_engine", reason)
            for rollout in list(self.rollouts):
                for sample in [sample for sample in rollout.samples.values() if sample.state is State.WAITING]:
                    self._discard(sample, failure)

    # ---- those who ask

    def _ask(self, ask: events.Ask) -> None:
        rollout = self.rollouts.place(ask.rollout, self._now)
        if isinstance(rollout, Failure):
            self._effects.append(events.Deliver(ask.asker, rollout))
            return
        key = SampleKey(rollout.number, ask.token) if ask.token is not None else SampleKey(rollout.number, "", self._next())
        sample = rollout.samples.get(key)
        if sample is None:
            if (refusal := self._refusal(rollout, ask.request)) is not None:
                self._effects.append(events.Deliver(ask.asker, refusal))
                return
            prompt = hash(ask.request.prompt.tobytes())
            sample = rollout.samples[key] = Sample(
                key=key, request=ask.request, rollout=rollout, serial=self._next(), seed=key.seed(self._seed), prompt=prompt
            )
            rollout.count(None, State.WAITING, self._now, len(ask.request.prompt))
            self._waiting.count += 1
            self._forecast.joined(sample)
            if ask.token in rollout.cancelled:
                self._end_early([sample], CANCELLED)
            elif rollout.phase is Phase.OPEN:
                self._waiting.push(sample)
        elif sample.request.fingerprint != ask.request.fingerprint:
            text = f"sample {ask.token!r} of rollout {rollout.number} was first asked with another prompt or other parameters"
            self._effects.append(events.Deliver(ask.asker, Failure(409, "sample_mismatch", text)))
            return
        if ask.streams and sample.ids and not sample.request.atomic:
            sample.streamed = True
            self._effects.append(events.Grew(ask.asker, sample.ids.tolist(), sample.logprobs.tolist(), cut(sample.rows, 0, None)))
        if sample.outcome is not None:
            self._effects.append(events.Deliver(ask.asker, sample.outcome))
        else:
            sample.askers[ask.asker] = ask.streams
            self._askers[ask.asker] = sample

    def _refusal(self, rollout: Rollout, request: Request) -> Failure | None:
        """Return why no new sample of the rollout is taken; None if one is."""
        if deadly := [name for name in self._refused if request.params.get(name)]:
            return Failure(400, "bad_request", f"{deadly[0]} is refused: this pipeline's engines, as they are configured, would die of it")
        if rollout.phase is Phase.CLOSED:
            return Failure(404, "rollout_closed", f"rollout {rollout.number} is closed")
        if self._hopeless:
            return Failure(503, "no_engine", self._hopeless)
        if (held := sum(one.tokens for one in self.rollouts)) + len(request.prompt) > MAX_TOKENS:
            return Failure(503, "full", f"prompts of {held} tokens are held already; ask again when some samples are done")
        return self._waiting.full(rollout)

    def _leave(self, asker: int) -> None:
        sample = self._askers.pop(asker, None)
        if sample is None:
            return
        del sample.askers[asker]
        if not sample.askers:
            self._discard(sample, None)

    def _curtail(self, asker: int) -> None:
        if (sample := self._askers.get(asker)) is not None:
            for attempt in self._end_early([sample], ABORTED):
                self._abort(attempt)

    # ---- what engines say

    def _receive(self, event: events.Tokens) -> bool:
        """Take the tokens. Returns whether something else may start because of them."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None or (sample := attempt.sample) is None:
            return False
        grown, match = attempts.receive(attempt, sample, event, self._decode)
        self._effects.extend(grown)
        if match is not None:
            self._stop_at(attempt, sample, match)
        return attempts.prove(attempt, sample) and self._waiting.held_up

    def _stop_at(self, attempt: Attempt, sample: Sample, match: StopMatch) -> None:
        """Complete the sample, although its engine does not see that it is complete."""
        attempt.release()
        sample.keep(match.kept)
        attempt.disown()
        self._abort(attempt)
        self._complete(sample, {"type": "stop", "matched": match.stop})

    def _ended(self, event: events.Ended) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is None:
            return  # cut before this came: an answer of the dead
        self._effects += self._attempts.release(attempt)
        sample, end = attempt.sample, event.end
        attempts.note_end(attempt, end, self._now)
        if isinstance(end, events.Broken) and end.died:
            self.engines.note_death(attempt.engine, self._now)
        if sample is None:
            return
        if isinstance(end, events.Finished) and not attempts.is_abort(end):
            self._complete(sample, end.reason, end.meta if attempt.start == 0 else {})
        elif (failure := attempts.failure_of(attempt, sample, end, self.engines, self._now)) is not None:
            self._settle(sample, failure)
        else:
            self._requeue(sample)

    def _requeue(self, sample: Sample) -> None:
        """Queue the rest of a sample whose attempt has ended early, if there is a rest."""
        if sample.request.atomic:
            if sample.closing is not None:
                self._complete(sample, sample.closing)
                return
            sample.restart()
        elif reason := continuation.finish_reason(sample.request, sample.ids, self._eos, self._decode):
            self._complete(sample, reason)
            return
        if sample.closing is not None:
            self._complete(sample, sample.closing)
            return
        self._restart_if_stale(sample)
        self._move(sample, State.WAITING)
        if self._hopeless:
            self._discard(sample, Failure(503, "no_engine", self._hopeless))
        else:
            self._waiting.push(sample)

    def _restart_if_stale(self, sample: Sample) -> None:
        """Forget its tokens, if they may not go on under the newest weights."""
        if self._policy.must_restart(sample, self.engines.newest):
            sample.restart()

    def _move(self, sample: Sample, state: State) -> None:
        if sample.state is not state:
            self._waiting.count += (state is State.WAITING) - (sample.state is State.WAITING)
            sample.rollout.count(sample.state, state, self._now, len(sample.request.prompt))
            sample.state = state

    def _complete(self, sample: Sample, reason: Mapping[str, Any], meta: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._settle(sample, sample.answer(reason, meta))

    def _settle(self, sample: Sample, outcome: Outcome) -> None:
        """End the sample: everybody who asked gets the outcome, and whoever asks later, if it has a name."""
        self._move(sample, State.DONE)
        sample.outcome = outcome
        for mate in self._forecast.ended(sample, outcome):
            self._waiting.moved(mate)
        sample.forget_prompt()
        self._deliver(sample, outcome)
        if sample.key.anonymous:
            sample.rollout.samples.pop(sample.key, None)

    def _discard(self, sample: Sample, failure: Failure | None) -> None:
        """Drop the sample, because nobody wants it (no failure) or nobody can make it: a later asker starts it anew."""
        self._waiting.count -= sample.state is State.WAITING
        sample.rollout.count(sample.state, None, self._now, len(sample.request.prompt))
        sample.state = State.DONE
        self._forecast.ended(sample, None)
        sample.rollout.samples.pop(sample.key, None)
        if failure is not None:
            self._deliver(sample, failure)
        if (attempt := sample.attempt) is not None:
            attempt.disown()
            self._abort(attempt)

    def _deliver(self, sample: Sample, outcome: Outcome) -> None:
        for asker in sample.askers:
            del self._askers[asker]
            self._effects.append(events.Deliver(asker, outcome))
        sample.askers.clear()

    # ---- attempts

    def _dispatch(self) -> None:
        self.engines.end_back_offs(self._now)
        while (pair := self._waiting.next(self.engines, self._now)) is not None:
            sample, engine = pair
            self._restart_if_stale(sample)
            self._move(sample, State.IN_FLIGHT)
            self._effects.append(self._attempts.begin(self._next(), sample, engine, self.engines.slots))

    def _fail_over(self, engine: Engine) -> None:
        """Cut everything that runs on a dead engine; its rest is queued at once."""
        engine.routed = False
        self.engines.note_death(engine, self._now)
        for attempt in self._attempts.on(engine):
            self._cut(attempt, died=True)

    def _abort(self, attempt: Attempt) -> None:
        self._effects += self._attempts.abort(attempt, self._now)

    def _cut(self, attempt: Attempt, *, died: bool = False) -> None:
        self._effects.append(events.Cut(attempt.number))
        self._effects += self._attempts.release(attempt)
        if (sample := attempt.sample) is None:
            return
        if died and (failure := attempts.death_of(attempt, sample, self.engines)) is not None:
            self._settle(sample, failure)
        else:
            self._requeue(sample)

    # ---- time

    def _expire(self) -> None:
        """End what has been waited for long enough: aborts without an answer, rollouts that did not open, implicit ones that are quiet."""
        for attempt in self._attempts.impatient(self._now):
            attempt.engine.failures += 1
            attempt.engine.back_off(self._now)
            self._cut(attempt)
        for rollout in self.rollouts.overdue(self._now):
            if rollout.phase is Phase.EXPECTED:
                self._end_expected(rollout, Failure(404, "rollout_unknown", f"rollout {rollout.number} has not been opened"))
            else:
                self.rollouts.close(rollout)

    def _end_expected(self, rollout: Rollout, failure: Failure) -> None:
        self.rollouts.drop(rollout)
        for sample in list(rollout.samples.values()):
            self._discard(sample, failure)

    def _next(self) -> int:
        self._counter += 1
        return self._counter
