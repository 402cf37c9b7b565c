import time
from trainshed import connect
P = connect()
for step in range(P.steps_done, P.steps):
    with P.rollout(target=6000) as r: r.generate([[3, 4]] * 6000, max_new_tokens=24, ignore_eos=True)
    P.report(step, reward=1.0)
