import sys; print(sys.version)
from trainshed import connect
p = connect()
with p.rollout(target=8) as r: s = r.generate([[3, 4]] * 8, max_new_tokens=4, ignore_eos=True)
print(len(s), s[0].output_ids)
class Fake:  # a numpy/JAX array, say
    dtype = "float32"; shape = (1,)
try: p.publish({"model.norm.weight": Fake()})
except Exception as e: print("publish:", type(e).__name__, e)
