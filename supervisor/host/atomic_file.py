"""Files that are replaced in one step: what was there stays until the new content is complete."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the content of `path`; `mode` (less the umask) is that of the file.

    Raises OSError, and then leaves nothing half written, which would take room from others.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # left by a writer that was killed, perhaps with another mode
        new.touch(mode)
        new.write_bytes(data)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
