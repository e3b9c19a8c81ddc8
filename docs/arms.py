"""The picture of what every arm of the small experiment knows: python docs/arms.py docs/results/small OUT.png"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from quadrivium.experiment import summary

ARMS = {
    "text": "documents alone",
    "text-equal": "documents alone, with the compute of all routes",
    "captions": "documents and captions, no pixels, the same compute",
    "no-t2v": "all routes but text to frames",
    "no-ahead": "all routes, captions foretell nothing",
    "no-v2t": "all routes but frames to text",
    "four": "all four routes",
    "no-v2v": "all routes but frames to frames",
    "share-cross": "all four, joined by cross-attention",
    "four-more": "all four, for half as many steps more",
    "distil": "the same steps more, also on what it imagined",
    "oracle": "all four, and the facts written down",
}


def main(results: Path, out: Path) -> None:
    found = summary(results)
    figure = Figure(figsize=(9.2, 4.3), layout="constrained", dpi=130)
    axes = figure.subplots()
    for y, arm in enumerate(reversed(ARMS)):
        row = found["arms"][arm]["facts"]["seen"]["direct"]
        colour = "#c4520b" if arm in ("text", "text-equal", "captions") else "#8a8a8a" if arm == "oracle" else "#0b62c4"
        axes.errorbar(row["accuracy"], y, xerr=row["half"], fmt="o", color=colour, capsize=3, markersize=7, linewidth=2)
        axes.text(1.04, y, f"{row['accuracy']:.2f} ± {row['half']:.2f}   {row['n']} seeds", va="center", fontsize=9)
    for at, name, style in ((found["chance"], "chance", "-"), (found["alone"], "one of two kinds known", ":")):
        axes.axvline(at, color="#333333", linewidth=1, linestyle=style)
        axes.text(at, len(ARMS) - 0.4, name, ha="center", fontsize=8, bbox={"color": "white", "pad": 1})
    axes.set_yticks(range(len(ARMS)), list(reversed(ARMS.values())), fontsize=9)
    axes.set_xlim(0.2, 1.02)
    axes.set_ylim(-0.6, len(ARMS) + 0.1)
    axes.set_xlabel("right answers in text about what was only ever seen; 95 % intervals over seeds", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
