"""This module makes the seed of one sample from its name, never from where or when it ran.

`trainshed` computes the same formulas by itself (it works alone); a test compares the two.
"""

import hashlib


def sample_seed(seed: int, rollout: int, name: int | str) -> int:
    """Return the seed of a sample in a pipeline with seed `seed`; 0 <= result < 2**63, stable for ever.

    `name` is its number in rollout `rollout`, or what `sample_name` has made of its key.
    """
    digest = hashlib.blake2b(f"{seed}:{rollout}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample_name(key: object) -> str:
    """Return the name of a sample with this key: `k` and 32 hexadecimal digits. Equal keys have equal names in every process.

    A key is a string, a number, bytes, None, or a tuple of keys. Raises TypeError for others, whose hash is another in each process.
    """
    return "k" + hashlib.blake2b(_canonical(key).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _canonical(key: object) -> str:
    if isinstance(key, tuple):
        return "(" + "".join(f"{_canonical(part)}," for part in key) + ")"
    if isinstance(key, float) and not key.is_integer():
        return repr(key)
    if isinstance(key, int | float):  # 1, 1.0 and True are one key of a dictionary
        return str(int(key))
    if key is None or isinstance(key, str | bytes):
        return repr(key)
    if hasattr(key, "__index__"):  # of numpy or torch
        return str(key.__index__())
    raise TypeError(f"{key!r} is a {type(key).__name__}: a key is made of strings, numbers, bytes, None and tuples of these")
