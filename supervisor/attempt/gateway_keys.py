"""This module keeps URL and key of each pipeline's gateway in `<attempt>/gateways.json` (0600), for a resumed run and for a person's own clients.

A key is made once in an attempt, and a resumption goes on with it. The file is read only where it is a file of ours that nobody else can open.
"""

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from supervisor.attempt.directory import is_running
from supervisor.errors import SetUpError, UsageError
from supervisor.host.atomic_file import write_atomically
from trainers.protocol.ids import PipelineId

FILE: Final = "gateways.json"
_MOST: Final = 1 << 20


class GatewayAccess(msgspec.Struct, frozen=True):
    """Where a pipeline's gateway listens, and the key that it asks for (None: it asks for none)."""

    url: str
    key: str | None

    def __repr__(self) -> str:
        return f"GatewayAccess({self.url!r})"


def keep(attempt: Path, urls: Mapping[PipelineId, str], open_to_all: frozenset[PipelineId]) -> dict[PipelineId, str]:
    """Return the key of each pipeline but those that are open to all, and write down what the gateways are asked with. Raises SetUpError."""
    try:
        earlier: Mapping[PipelineId, GatewayAccess] = _read(attempt / FILE)
    except (OSError, ValueError, RecursionError):  # the first start of this attempt, or nothing that could be relied upon
        earlier = {}
    known = {id: access.key for id, access in earlier.items() if access.key}
    keys = {id: known.get(id) or secrets.token_urlsafe(32) for id in urls if id not in open_to_all}
    try:
        write_atomically(
            attempt / FILE, msgspec.json.encode({id: GatewayAccess(url, keys.get(id)) for id, url in urls.items()}), mode=0o600
        )
    except OSError as error:
        raise SetUpError(f"{attempt / FILE} cannot be written: {error.strerror}. Free space, or set [host] directory.") from error
    return keys


def access(attempt: Path, pipeline: str) -> GatewayAccess:
    """Return how the gateway of a running attempt's pipeline is asked. Raises UsageError with a sentence that says why it is not known."""
    try:
        known = _read(attempt / FILE)
    except FileNotFoundError as error:
        raise UsageError(f"{attempt}: this run has not started its gateways.") from error
    except PermissionError as error:
        raise UsageError(f"{attempt / FILE}: {error.strerror}. Only the user who started the run may have its keys.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{attempt / FILE} is damaged: {error}.") from error
    if not is_running(attempt):
        raise UsageError(f"{attempt}: this run does not go on, and nobody listens at its gateways.")
    found = known.get(PipelineId(pipeline))
    if found is None:
        raise UsageError(f"there is no pipeline {pipeline!r} in {attempt}; there are: {', '.join(sorted(known))}.")
    return found


def _read(path: Path) -> dict[PipelineId, GatewayAccess]:
    """Raises OSError (PermissionError: it is not ours, or open to others), and what a decoder raises (ValueError, RecursionError)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to uid {found.st_uid}")
        if found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "others may read it")
        return msgspec.json.decode(file.read(_MOST), type=dict[PipelineId, GatewayAccess])
