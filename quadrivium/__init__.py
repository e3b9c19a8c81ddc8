"""Quadrivium: one model, four routes between text and vision, and the measure of what text gained.

    import quadrivium as q

    model = q.load("runs/mine")
    pictures = model.generate("image", text="a red ball", n=4)     # uint8 (4, S, S, 3)
    words = model.generate("text", image="ball.png")               # list of str
    bits = model.score(text="a red ball", given_image="ball.png")  # cost of the text, the picture being given
    scenes = model.imagine("A ball on a ramp.", n=2)               # clips, and what the model sees in them

The names in ``__all__`` and their parameters are stable; other modules are not.
"""

import os
from typing import TYPE_CHECKING, Any

from quadrivium.errors import ConfigError, DataError, ItemError, QuadriviumError, RunError

if TYPE_CHECKING:
    from quadrivium.library import Imagined, Quadrivium, load

# Two threads that spin while they wait for each other run 2.5 times slower on a shared machine.
# OpenMP reads this once, when torch is first imported, so it has to be set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DataError",
    "Imagined",
    "ItemError",
    "Quadrivium",
    "QuadriviumError",
    "RunError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:  # what needs torch is imported when it is asked for
    if name in ("Imagined", "Quadrivium", "load"):
        from quadrivium import library

        return getattr(library, name)
    raise AttributeError(f"module 'quadrivium' has no attribute {name!r}")
