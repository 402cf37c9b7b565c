"""Files that are replaced in one step: what was there stays until the new content is complete."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of `path`.

    Raises OSError, and then leaves nothing half written, which would take room from others.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
