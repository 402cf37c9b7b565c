import sys, time
from trainshed import connect
p = connect(); line = "x" * 1023 + "\n"; t = time.time()
for _ in range(1 << 21):  # 2 GiB
    sys.stdout.write(line)
sys.stdout.flush(); sys.stderr.write(f"2 GiB in {time.time()-t:.1f}s\n")
with p.rollout(target=8) as r: r.generate([[3, 4]] * 8, max_new_tokens=4, ignore_eos=True)
p.report(0, reward=1.0)
