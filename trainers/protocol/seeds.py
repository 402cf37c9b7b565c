"""This module makes the seed of one sample from its name, never from where or when it ran.

`trainshed` computes the same formula by itself (it works alone); a test compares the two.
"""

import hashlib


def sample_seed(seed: int, rollout: int, index: int) -> int:
    """Return the seed of sample `index` of rollout `rollout` in a pipeline with seed `seed`; 0 <= result < 2**63, stable for ever."""
    digest = hashlib.blake2b(b"%d:%d:%d" % (seed, rollout, index), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
