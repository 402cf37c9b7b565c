"""Where a child finds our code: our own programs get the checkout and the client, a user's code gets the client alone."""

from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = CHECKOUT / "trainers" / "client"
"""The folder that holds one package, `trainshed`."""
OUR_PATH: Final = f"{CHECKOUT}:{CLIENT}"
