"""Every package that this project installs, with its licence, from what is installed here: python docs/licences.py

Writes docs/licences.md and constraints.txt: the tested set, which `make` installs. Run it in the environment of `make setup`.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HEAD = """# Licences

Quadrivium is Apache-2.0. It installs the packages below and contains none of them. Made by `python docs/licences.py` from the
metadata of what is installed; *core* is what `pip install -e .` brings, the rest comes with the extras that are named.
The wheels of `av` and `pillow` bring compiled libraries of their own, whose licences are not in this table: the FFmpeg of the
tested `av` reports "LGPL version 3 or later" and lies beside x264 and x265, which are GPL-2.0-or-later. Whoever passes those wheels on,
and not merely their names, has to heed that.

| package | version | licence | for |
|---|---|---|---|
"""


def needed(name: str, extras: frozenset[str], found: dict[str, set[str]], of: str) -> None:
    """Add a package and all that it needs."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if of in found.get(key, ()):
        return
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return  # for another system or Python, by its marker or not at all
    found.setdefault(key, set()).add(of)
    for line in installed.requires or ():
        requirement = Requirement(line)
        if any(requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in (extras or {""})):
            needed(requirement.name, frozenset(requirement.extras), found, of)


def licence(name: str) -> str:
    """One line: the SPDX expression, else the classifiers, else the short form of the free text."""
    data = distribution(name).metadata
    classes = [c.rpartition(" :: ")[2] for c in data.get_all("Classifier", []) if c.startswith("License ::")]
    spdx, text = ((data.get_all(field) or [""])[0].strip() for field in ("License-Expression", "License"))
    return spdx or ", ".join(classes) or text.split("\n")[0][:60] or "see its files"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, set[str]] = {}
    for of, lines in {"core": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            requirement = Requirement(line)
            if requirement.name != project["name"]:
                needed(requirement.name, frozenset(requirement.extras), found, of)
    rows, pins = [], []
    for name in sorted(found):
        version = distribution(name).version
        use = "core" if "core" in found[name] else ", ".join(sorted(found[name]))
        rows.append(f"| {name} | {version} | {licence(name)} | {use} |\n")
        pins.append(f"{name}=={version.partition('+')[0]}\n")
    (ROOT / "docs" / "licences.md").write_text(HEAD + "".join(rows))
    (ROOT / "constraints.txt").write_text("".join(pins))


if __name__ == "__main__":
    main()
