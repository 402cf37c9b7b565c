"""Standard streams that nobody reads, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
from supervisor.cli import streams
streams.present()
with streams.lasting():
    for number in range(3000):
        streams.say("line %d of many, so that the pipe is full" % number)
    streams.note("said")
sys.exit(5)
"""


@pytest.mark.parametrize("reader", ["| head -1", "> /dev/full", ">&-", "2>&- | head -1", "2>&1 | head -1", ">&- 2>&-"])
def test_the_code_is_ones_own(reader: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} -P {tmp_path / 'program.py'} {reader}; echo ${{PIPESTATUS[0]}} >&3"
    code = tmp_path / "code"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        ["bash", "-c", f"({command}) 3> {code}"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert code.read_text() == "5\n"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
