"""The picture of alignment.md: python docs/alignment.py OUT.png NAME=RUN ... (runs that `quadrivium eval RUN --alignment` measured)."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0b62c4", "#c4520b", "#2a8a3e", "#8a2a86", "#6b6b6b", "#b59a00", "#000000")


def main(out: Path, runs: dict[str, dict]) -> None:
    figure = Figure(figsize=(9.6, 7.4), layout="constrained", dpi=130)
    (through, layers), (turned, lost) = figure.subplots(2, 2)
    colours = dict(zip(runs, COLOURS, strict=False))

    def cells(found: dict[str, Any], step: int, pair: str) -> list[dict[str, float]]:
        return found["steps"][step]["sources"]["kinds"][pair]

    def stills(found: dict[str, Any], pair: str) -> list[dict[str, float]]:
        return found["steps"][-1]["sources"]["world/stills"][pair]

    for name, found in runs.items():
        at, steps = found["layer"] - 1, [s["step"] for s in found["steps"]]
        last = cells(found, -1, "K1 K2")
        x = range(1, len(last) + 1)
        if steps[0] == 0:
            end = steps[-1]
            curve = [cells(found, i, "K1 K2")[at]["overlap"] for i in range(len(steps))]
            through.plot([s / end for s in steps], curve, "o-", color=colours[name], markersize=3)
        layers.plot(x, [c["overlap"] for c in last], "o-", color=colours[name], label=name, markersize=3)
        turned.plot(x, [c["angles"] for c in stills(found, "Q3 K2")], "o-", color=colours[name], label=name, markersize=3)
        turned.plot(x, [c["angles"] for c in stills(found, "K1 K2")], "o--", color=colours[name], markersize=3, alpha=0.5)
    first = next(iter(runs.values()))
    high = max(c["high"] for c in cells(first, -1, "K1 K2"))
    for axes in (through, layers):
        axes.axhline(high, color="#999999", linestyle=":", label="95 % of permutations lie below")
        axes.set_ylim(bottom=0)
    turned.axhline(first["rank"] / first["head_size"], color="#999999", linestyle=":", label="random directions")
    turned.set_ylim(bottom=0)
    for i, (name, found) in enumerate(runs.items()):
        for j, how in enumerate(("zero", "swap")):
            row, y = found["probe"][how]["bits_per_byte"], i + 0.3 * j - 0.15
            lost.plot(row["controls"], [y] * len(row["controls"]), "|", color="#999999", markersize=9)
            lost.errorbar([row["change"]], [y], xerr=[[2 * row["stderr"]]] * 2, fmt="os"[j], color=colours[name], markersize=4)
    lost.set_yticks(range(len(runs)), list(runs))
    lost.invert_yaxis()
    through.set(
        title=f"K1 ~ K2 of kinds, layer {first['layer']}", xlabel="share of the run's steps", ylabel="neighbours in common"
    )
    layers.set(title="K1 ~ K2 of kinds, at the end", xlabel="layer", ylabel="neighbours in common")
    turned.set(title="stills: directions of Q3 ~ K2 (dashed: K1 ~ K2)", xlabel="layer", ylabel="mean squared cosine")
    lost.set(
        title="text without the visual part of its keys",
        xlabel="bits a byte more; circle zero, square swap, ticks controls",
    )
    figure.legend(*layers.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    for axes in (layers, turned):
        axes.set_xticks(range(1, len(cells(first, -1, "K1 K2")) + 1))
    for axes in (through, layers, turned, lost):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


if __name__ == "__main__":
    given = dict(pair.split("=", 1) for pair in sys.argv[2:])
    main(Path(sys.argv[1]), {n: json.loads((Path(r) / "results.json").read_text())["alignment"] for n, r in given.items()})
