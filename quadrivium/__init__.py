"""Quadrivium: one model, four routes between text and vision, and the measure of what text gained."""

import os

# Two threads that spin while they wait for each other run 2.5 times slower on a shared machine.
# OpenMP reads this once, when torch is first imported, so it has to be set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
