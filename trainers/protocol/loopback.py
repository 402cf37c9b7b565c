"""This module says which HTTP requests at a loopback port come from a program of this machine, and not from a web page that somebody reads on it.

A browser lets any page send "simple" requests to 127.0.0.1, and a page whose name is made to mean 127.0.0.1 (DNS rebinding) read the answers.
The first kind shows an `Origin` header, the second kind a `Host` that is no name of this machine. Programs send neither. (Fetch standard,
section 3.1; RFC 9112, section 3.2.)
"""

import re
from collections.abc import Sequence
from typing import Final

LOCAL: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names by which a program of this machine addresses a loopback port."""
_HOST: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[^\s:\[\]/@]{1,253})(:[0-9]{0,5})?", re.ASCII | re.IGNORECASE)


def refusal(hosts: Sequence[str], origins: Sequence[str], address: str = "127.0.0.1") -> tuple[str, str] | None:
    """Return a code and a sentence for a request that is refused, None for one that is not.

    `hosts` and `origins` are the values of its headers of these names; `address` is the one at which we listen.
    """
    if origins:
        return "origin_refused", "requests of web pages are refused: leave out the header Origin"
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or match[1].lower() not in LOCAL | {address}:
        return "host_refused", "the header Host must name this machine: 127.0.0.1, localhost or [::1], with any port"
    return None
