"""Verifiers for test_rewards.py, good and bad."""

import os
import re
import sys
import time


def length(text: str) -> int:
    return len(text)


def odd(what: str, value: float = 0.0) -> object:
    match what:
        case "hang":
            time.sleep(600)
        case "hang in C":  # holds the interpreter's lock: no thread of this process runs any more
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "die":
            os._exit(3)
        case "raise":
            raise ValueError("nö\u202e" * 1000)
        case "exit":
            sys.exit(4)
        case "nan":
            return float("nan")
        case "inf":
            return -float("inf")
        case "none":
            return None
        case "torch":
            return "torch" in sys.modules or "transformers" in sys.modules
        case "pid":
            return os.getpid()
    return value
