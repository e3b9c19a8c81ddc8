"""The curve over the number of kinds: python docs/kinds.py docs/results OUT.png"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

KINDS = (16, 32, 64, 128)
OWN = "kinds-64-narrated"  # is the experiment itself
WAYS = {"narrated": ("clips narrated at their start", "#0b62c4"), "unnarrated": ("not narrated", "#c4520b")}


def main(results: Path, out: Path) -> None:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained", dpi=130)
    for axes, (asked, title) in zip(
        figure.subplots(1, 2, sharey=True), {"direct": "in text alone", "imagine": "imagining first"}.items(), strict=True
    ):
        for way, (name, colour) in WAYS.items():
            cells = [results / f"kinds-{kinds}-{way}" / "four-seed-1.json" for kinds in KINDS]
            cells = [results / "small" / cell.name if cell.parent.name == OWN else cell for cell in cells]
            here = [i for i, cell in enumerate(cells) if cell.is_file()]
            found = [json.loads(cells[i].read_text(encoding="utf-8"))["facts"]["seen"][asked]["all"] for i in here]
            axes.errorbar(
                here,
                [row["accuracy"] for row in found],
                yerr=[2 * row["se"] for row in found],  # over questions: one seed
                fmt="o-",
                color=colour,
                capsize=3,
                label=name,
            )
        axes.axhline(found[0]["chance"], color="#333333", linewidth=1)
        axes.text(len(KINDS) - 1, found[0]["chance"] - 0.01, "chance", va="top", ha="right", fontsize=8)
        axes.set_xticks(range(len(KINDS)), map(str, KINDS), fontsize=9)
        axes.set_xlabel("kinds", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("right about what was only ever seen", fontsize=9)
    figure.axes[0].set_ylim(0.2, 1.02)
    figure.axes[0].legend(fontsize=9, frameon=False)
    figure.savefig(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
