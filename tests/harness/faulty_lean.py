"""As much of `json`, `socket`, `signal` and `contextlib` as a scripted engine needs, from the C modules below them.

Importing the real ones would be more than half of its start (10 of 20 ms), and the tests start thousands of it.
"""

import _signal
import _socket
import os
from _json import encode_basestring_ascii, make_encoder, make_scanner

SIGTERM, SIGKILL, SIGBUS = (int(number) for number in (_signal.SIGTERM, _signal.SIGKILL, _signal.SIGBUS))
ignore, wait_for_a_signal = (lambda number: _signal.signal(number, _signal.SIG_IGN)), _signal.pause


class _Plain:
    """What a JSON decoder does without options."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = make_scanner(_Plain)
_encode = make_encoder(None, None, encode_basestring_ascii, None, ": ", ", ", False, False, True)


def loads(text):
    """Raises what `json.loads` raises, and StopIteration where there is nothing."""
    if isinstance(text, bytes):
        text = text.decode()
    return _scan(text, len(text) - len(text.lstrip()))[0]


def dumps(value):
    return "".join(_encode(value, 0))


class suppress:
    def __init__(self, *errors):
        self.errors = errors

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        return kind is not None and issubclass(kind, self.errors)


class Socket(_socket.socket):
    """TCP over IPv4; closed on exec."""

    def accept(self):
        return Socket(fileno=self._accept()[0])

    def linger(self, seconds):
        """0: its end is a reset."""
        self.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0" + int(seconds).to_bytes(4, "little"))

    def hurry(self):
        self.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)


def listener(host, port, backlog):
    sock = Socket(_socket.AF_INET, _socket.SOCK_STREAM)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


def connected(host, port, seconds):
    """Raises OSError."""
    sock = Socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def die(number=SIGKILL):
    os.kill(os.getpid(), number)
