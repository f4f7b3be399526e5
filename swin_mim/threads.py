"""How torch's CPU threads wait for each other. It has to be said before torch is loaded."""

import os
import sys

VARIABLES = {"GOMP_SPINCOUNT": "1000"}
"""For GNU's OpenMP, which torch has on Linux."""

_OF_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_politely() -> None:
    """Let threads that wait give their core away soon, where torch is not loaded yet and the user chose nothing.

    By default they spin for milliseconds at the end of each parallel loop. Where other processes want the cores, the
    thread that all wait for is then kept from one, and a training falls to a third of its speed and less.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _OF_USERS):
        os.environ.update(VARIABLES)
