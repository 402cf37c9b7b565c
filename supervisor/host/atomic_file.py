"""Files that are replaced in one step: what was there stays until the new content is complete."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the content of `path`; `mode` (less the umask) is that of the file.

    Whatever lies where the new content is prepared is removed: an unfinished file of ours, or what a child has put there. Raises OSError,
    and then leaves nothing half written, which would take room from others.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # left by a writer that was killed, perhaps with another mode
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
