"""Own handlers: TERM saves and goes on (as Megatron's --exit-signal-handler does: ends after the step), INT ignored, USR1 handled."""
import signal, sys, time
from trainshed import connect, Refused
stop = []
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGUSR1, lambda *a: print("USR1", flush=True))
p = connect()
for step in range(p.steps_done, p.steps):
    if stop: print("leaving after TERM", flush=True); break
    try:
        with p.rollout(target=8) as r: r.generate([[3, 4]] * 8, max_new_tokens=4, ignore_eos=True)
        with p.lease("train"): time.sleep(0.5)
    except Refused as e: print("refused", e.code, flush=True); time.sleep(3600)
    path = p.directory / "x"; path.write_text(str(step)); p.checkpoint(step, path); p.report(step, reward=1.0)
print("exit", time.time(), flush=True)
