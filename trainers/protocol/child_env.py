"""Where a child finds our code: our own programs get the checkout and the client, a user's code gets the client alone."""

from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = CHECKOUT / "trainers" / "client"
"""The folder that holds one package, `trainshed`."""
OUR_PATH: Final = f"{CHECKOUT}:{CLIENT}"

# -- variables that the supervisor sets for its children, and they read. None of ours passes through a user's `pass_env` or `env`.

PREFIX: Final = "TRAINSHED_"
API_KEY: Final = "TRAINSHED_API_KEY"
"""A key, and never on a command line. A gateway and a trainer get their pipeline's; an embedded engine one of its incarnation only."""
OPENAI_KEY: Final = "OPENAI_API_KEY"
"""The pipeline's key again, where OpenAI's clients look for it; a trainer's own setting goes before it."""
FD: Final = "TRAINSHED_FD"
"""The number of the descriptor that leads to the supervisor; for gateways and ranks. (The client, one file, has it as a literal.)"""
SOCKET: Final = "TRAINSHED_SOCKET"
"""The path of the socket that leads to the supervisor, for ranks that a launcher makes (`processes = "one"`): launchers close descriptors."""
TOKEN: Final = "TRAINSHED_TOKEN"
"""What a rank shows there; another one in each life of the trainer."""
OUTER_PYTHONPATH: Final = "TRAINSHED_OUTER_PYTHONPATH"
"""PYTHONPATH of the shell that started us, which `bin/supervise` keeps aside: no child gets it, `check` says so."""
GPUS: Final = "TRAINSHED_GPUS"
"""Device strings of the GPUs that the process may use, with commas: `virtual:0`, or `cuda:0,cuda:1` as the process counts them."""
RUN: Final = "TRAINSHED_RUN"
"""The attempt's directory."""
TAG: Final = "TRAINSHED_TAG"
"""`<run id>:<group>:<incarnation>`: marks every process of an incarnation, so that a lost one is recognised by its environment."""
URL: Final = "TRAINSHED_URL"
"""The pipeline's gateway, for a trainer that only sends requests."""
