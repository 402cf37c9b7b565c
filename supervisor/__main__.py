"""`python -P -m supervisor …`. Guarded, because spawned children of a process pool import the main module again."""

import sys

from supervisor.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
