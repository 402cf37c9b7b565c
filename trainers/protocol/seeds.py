"""The seed of one sample, from who it is and never from where or when it ran. PURE.

`trainshed` computes the same formula by itself (it works alone); a test compares the two.
"""

import hashlib


def sample_seed(seed: int, rollout: int, index: int) -> int:
    """Seed of sample `index` of rollout `rollout` in a pipeline with seed `seed`; 0 <= result < 2**63, stable for ever."""
    digest = hashlib.blake2b(b"%d:%d:%d" % (seed, rollout, index), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
