"""Everything that can go wrong for a reason the user can mend.

    QuadriviumError
    ├── ConfigError      an option or a value in a JSON file is unknown or out of range
    ├── DataError        a folder cannot be used: empty, no column, too many damaged items
    │   └── ItemError    one picture, clip, row or document is damaged; bulk reading skips and counts it
    └── RunError         a run, tokenizer or checkpoint folder is missing, damaged or in use

The command line prints the message on one line and leaves with status 2. A message names the file, the item and
the cure. Anything that is not a QuadriviumError is a defect of this project and keeps its traceback.
"""

import shlex


def command(*words: object) -> str:
    """A command as it is typed, with paths that hold spaces in quotes."""
    return shlex.join(["quadrivium", *map(str, words)])


def one_line(text: object, most: int = 300) -> str:
    """Printable on one line of a UTF-8 file, whatever the file name or the library's message holds."""
    flat = "".join(c if c.isprintable() else " " for c in str(text).encode("utf-8", "backslashreplace").decode())
    flat = " ".join(flat.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."


class QuadriviumError(Exception):
    """Base class: the message is one clear line for the user, printable whatever a damaged file has put into it."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message, 1200))


class ConfigError(QuadriviumError):
    """An option or configuration value is unknown, of the wrong type or out of range."""


class DataError(QuadriviumError):
    """A source or data folder cannot be used."""


class ItemError(DataError):
    """One item of a source is damaged. ``str(error)`` says which and why."""


class RunError(QuadriviumError):
    """A run folder, tokenizer or checkpoint is missing, damaged or in use."""
