"""`supervise init` writes a first configuration for this machine."""

import os
import shutil
from pathlib import Path
from typing import Final

from supervisor.cli import streams
from supervisor.errors import ExitCode, SetUpError, UsageError

_SGLANG: Final = ("/opt/sglang/bin/python",)
_DEFAULT: Final = Path("trainshed.toml")


def init(file: Path = _DEFAULT, /) -> int:
    """Write a first configuration for this machine, with remarks, as FILE (trainshed.toml). Nothing that is there is overwritten."""
    from supervisor.cli.run import gpus
    from supervisor.config.schema.tables import HostTable
    from supervisor.views.first_file import Box, text

    if file.suffix != ".toml":
        raise UsageError(f"{file}: call it something.toml.")
    try:
        found = gpus(HostTable(gpus="auto"))
    except SetUpError:
        found = []
    box = Box(found, _sglang(), _model())
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError as error:
        raise UsageError(f"{file} is there already; name another file.") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(text(box, str(file)))
    what = f"{len(found)} GPU{'s' if len(found) > 1 else ''}" if found else "virtual GPUs, as none was found"
    streams.say(f"{file}: two runs on {what}. Look through it, then: bin/supervise check {file}")
    return int(ExitCode.DONE)


def _sglang() -> str | None:
    """Return an interpreter that has SGLang, by the files beside it: nothing is started."""
    beside = shutil.which("sglang")
    candidates = [*_SGLANG, *([os.path.join(os.path.dirname(os.path.realpath(beside)), "python")] if beside else [])]
    if environment := os.environ.get("TRAINSHED_SGLANG"):
        candidates.insert(0, os.path.join(environment, "bin", "python"))
    return next((python for python in candidates if os.access(python, os.X_OK)), None)


def _model() -> str | None:
    """Return the name of a model in the local Hugging Face cache: the first by name that has weights."""
    home = os.environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    for folder in sorted(Path(home, "hub").glob("models--*--*")):
        if next(folder.glob("snapshots/*/*.safetensors"), None) is not None:
            return folder.name.removeprefix("models--").replace("--", "/", 1)
    return None
