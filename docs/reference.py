"""Every command with its options, from the code itself: python docs/reference.py

Writes docs/reference.md.
"""

import re
import warnings
from pathlib import Path

import tyro

from quadrivium.cli import _FACTORIES, COMMANDS

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Commands and options

What `quadrivium COMMAND --help` says, on one page. Made by `python docs/reference.py`; a test fails where it is not up to date.
An option with a dot belongs to a group, as in `--read.size 32`. A switch is turned off by `--no-` before its name.
"""


def render() -> str:
    """The page as a string."""
    links = "".join(f"| [`{name}`](#{name}) | {line} |\n" for name, line in COMMANDS.items())
    return f"{HEAD}\n| command | |\n|---|---|\n{links}{''.join(map(_command, COMMANDS))}"


def _command(name: str) -> str:
    function = _FACTORIES[name]()
    with warnings.catch_warnings():  # deprecated, and the one way to the options that tyro derives
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(function, prog=f"quadrivium {name}")
    tables, usage = {"": ""}, f"quadrivium {name}"
    for group in parser._action_groups:
        rows = ""
        for action in group._group_actions:
            if "--help" in action.option_strings:
                continue
            required = "(required)" in str(action.help)
            called = action.option_strings[0] if action.option_strings else action.dest.upper()
            if not action.option_strings or required:
                value = "" if not action.option_strings else f" {action.dest.upper()}"
                usage += f" {called}{value}" if required else f" [{called} ...]"
            rows += _row(
                called, "" if action.nargs == 0 or not action.option_strings else str(action.metavar), str(action.help)
            )
        title = "" if group.title in ("options", "positional arguments") else f"### {name}: {group.title}\n\n"
        tables[title] = tables.get(title, "") + rows
    told = re.split(r"\n\s*Args:", function.__doc__ or "")[0]
    lines = [line.removeprefix("        ").rstrip() for line in told.strip().splitlines()]
    listed = [f"\n{title}| option | | default |\n|---|---|---|\n{rows}" for title, rows in tables.items() if rows]
    return f"\n## {name}\n\n```text\n{usage} [options]\n\n{chr(10).join(lines)}\n```\n{''.join(listed)}"


def _row(option: str, value: str, told: str) -> str:
    """A line of a table; what tyro writes behind the words of an option goes into a column of its own."""
    words, _, default = told.partition("(default:")
    default = "required" if "(required)" in words else default.strip().removesuffix(")")
    value = value.replace("{None}|", "").replace("{", "").replace("}", "").replace("|", " or ")
    cells = [f"`{option} {value}`".replace(" `", "`"), words.replace("(required)", ""), "" if default == "None" else default]
    return "| " + " | ".join(" ".join(cell.replace("|", r"\|").split()) for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"written: {PAGE}")
