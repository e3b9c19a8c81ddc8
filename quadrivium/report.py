"""results.json of `transfer`, `experiment` or `eval` -> one self-contained page: the verdict first, then what it rests on.

Needs matplotlib and jinja2 (`pip install -c constraints.txt -e '.[report]'`). Pictures are inline SVG whose colours are variables of the page,
so that one picture serves light, dark and paper. Nothing but the results file is read.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from quadrivium.data.shards import read_json, write_atomic
from quadrivium.errors import ConfigError, RunError
from quadrivium.statistics import partly, rightly, worth

# Drawn in these colours, shown in the page's: name of the variable -> stand-in.
_INK = {"ink": "#010203", "soft": "#040506", "mark": "#070809"}


def write_report(results: Path, out: Path | None = None) -> Path:
    """Write the page (by default report.html beside the results) and return its path. ``results``: the file, or its folder."""
    path = results / "results.json" if results.is_dir() else results
    found = read_json(path, "results of an experiment")
    if not found.keys() & {"arms", "routes", "alignment"}:
        raise RunError(f"{path}: holds nothing to show; give the results.json of quadrivium transfer, experiment or eval")
    try:
        page = render(found)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise RunError(
            f"{path}: results of another version, or damaged ({error!r}); run the same experiment command again"
        ) from None
    out = out or path.with_name("report.html")
    write_atomic(out, page.encode())
    return out


def render(found: dict[str, Any]) -> str:
    """The page as a string."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("a report needs matplotlib and jinja2: pip install -c constraints.txt -e '.[report]'") from None
    made = _transfer if found.get("kind") == "transfer" else _experiment if "arms" in found else _run
    view = made(found)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    return environment.from_string(_PAGE).render(**view, words=("reads", "what", "source"))


def _number(value: float | None, shape: str = ".4f") -> str:
    return "–" if value is None else format(value, shape).replace("-", "−")


def _chance(p: float | None) -> str:
    """A p-value, which is never 0."""
    return "< 0.001" if p is not None and p < 0.001 else _number(p, ".3f")


def _transfer(found: dict[str, Any]) -> dict[str, Any]:
    arms, gains, ladder, right = found["arms"], found["gains"], found["ladder"], rightly(found)
    rows = [
        [
            a,
            r["says"],
            len(r["seeds"]),
            *([_interval(right[a]["mean"], right[a]["half"])] if right else []),
            _interval(r["bits_per_byte"], r["half"]),
            _number(r["epochs"], ".1f"),
            _number(r["seconds"], ",.0f"),
        ]
        for a, r in arms.items()
    ]
    saved, of = (
        ("more right answers by all routes", "Own questions")
        if right
        else ("bits per byte saved by all routes", "Held-out text")
    )
    compared = [
        [a, g["n"], _number(g["mean"], "+.4f"), _ends(g["low"], g["high"], "+.4f"), _chance(g["p"]),
         _chance(g["holm"]), _number(g["detectable"])]
        for a, g in gains.items()
    ]  # fmt: skip
    routes = _routes(found["routes"])
    notes = [f"Primary endpoint, declared before the first run: {found['primary']}."]
    notes += found["notes"]
    sections = [
        _section("What four routes gain over each arm", ["arm", "seeds", "more right answers" if right else "bits per byte saved", "95 % interval", "p", "p (Holm)", "detectable"], compared,
                 _forest([(a, g["mean"], g["low"], g["high"]) for a, g in gains.items()], saved, 0.0),
                 f"{of}, paired by seed. Right of the line: all four routes are better. Holm over all but the declared comparisons."),
        _section("Arms", ["arm", "reads", "seeds", *(["right"] if right else []), "bits per byte", "epochs of text", "seconds a cell"], rows),
    ]  # fmt: skip
    if ladder:
        said = ("in bits of held-out text, " if right else "") + worth(ladder).replace("-", "−")
        sections.insert(1, _section("What a frame is worth", [], [], _curve(ladder),
            f"{said[0].upper() + said[1:]}: {ladder['frames']:,} frames, {ladder['read']:,} ids read, "
            f"{ladder['captions']:,} of them of captions. Numbers at an end of the ladder are bounds; nothing is extrapolated."))  # fmt: skip
    if routes:
        sections.append(_section("Routes of the arm four, first seed", _ROUTE, routes, note=_route_note(found["routes"])))
    if asked := found.get("endpoints"):
        sections += _endpoints(asked, list(arms))
    if any((seen := found.get("findings") or {}).values()):
        sections.append(_findings(seen))
    if documents := found["documents"]:
        some = documents if len(documents) <= 10 else [*documents[:5], *documents[-5:]]
        shown = [[d["document"], _number(d["gain"], "+.4f")] for d in some]
        sections.append(_section("Documents that gain most and least", ["document", "bits per byte saved"], shown))
    return {
        "title": "What text gained from seeing", "verdict": found["verdict"]["sentence"], "notes": notes, "sections": sections,
        "samples": found.get("samples", {}), "command": found.get("command"), "versions": found["versions"], "config": json.dumps(found["config"], indent=1),
    }  # fmt: skip


def _experiment(found: dict[str, Any]) -> dict[str, Any]:
    from quadrivium.experiment import ARMS, LOOKED

    arms, rows, looked = found["arms"], [], []
    groups = [g for g in ("read", "seen", "both", "neither") if any(g in r["facts"] for r in arms.values())]
    outs = [o for o in LOOKED if any(o in r["facts"].get("seen", {}) for r in arms.values())]
    for arm, r in arms.items():
        asked, seen = ([r["facts"].get(g, {}).get("direct") for g in groups], [r["facts"].get("seen", {}).get(o) for o in outs])
        told, sights = (
            ["–" if c is None else _interval(c["accuracy"], c["half"], ".3f") for c in cells] for cells in (asked, seen)
        )
        text = r["bits"].get("t2t")
        rows.append([arm, len(r["seeds"]), *told, "–" if text is None else _interval(text["mean"], text["half"])])
        if any(seen):
            looked.append([arm, *sights])
    seen = [(a, r["facts"].get("seen", {}).get("direct")) for a, r in arms.items()]
    points = [
        (a, c["accuracy"], *((None, None) if c["half"] is None else (c["accuracy"] - c["half"], c["accuracy"] + c["half"])))
        for a, c in seen
        if c
    ]
    gain = next((d for d in found["differences"] if d["primary"]), None)
    if gain is None:
        said = "Undecided: the arms four and captions have no common seed yet."
    elif gain["half"] is None:
        said = f"Undecided, one seed has no interval: {found['primary']}: {_number(gain['difference'], '+.3f')}."
    else:
        low, high = gain["difference"] - gain["half"], gain["difference"] + gain["half"]
        word = "Gain" if low > 0 else "Loss" if high < 0 else "No difference detected"
        said = f"{word}: {found['primary']}: {_number(gain['difference'], '+.3f')} (95 % interval {_number(low, '+.3f')} to {_number(high, '+.3f')})."
    differ = [
        [
            d["arm"],
            d["base"],
            d["group"],
            d["n"],
            _interval(d["difference"], d["half"], "+.3f"),
            "" if d["primary"] else _number(d.get("p"), ".2g"),
        ]
        for d in found["differences"]
    ]
    harm = " ".join(
        f"Held-out text, {row['arm']} minus {row['base']}: {_interval(row['difference'], row['half'], '+.4f')} bits a byte, "
        f"{'harmless' if row['harmless'] else 'not shown to be harmless'}."
        for row in found["harm"]
    )
    cost = [[a, ARMS[a].says if a in ARMS else "", _number(r["seconds"], ",.0f")] for a, r in arms.items()]
    sections = [
        _section("Facts that were only ever seen, asked in text", [], [], _forest(points, "accuracy, direct", found["chance"]),
                 f"The line is chance, {found['chance']:.3f}. Intervals: 95 %, over seeds."),
        _section("Facts asked in text, by what was given of their kinds", ["arm", "seeds", *groups, "text, bits per byte"], rows),
        *([_section("Facts that were only ever seen, by looking", ["arm", *outs], looked)] if looked else []),
        _section("Differences between arms, paired by seed", ["arm", "minus", "facts, direct", "seeds", "difference", "p (Holm)"], differ, note=harm),
        _section("Arms and cost", ["arm", "reads", "seconds a cell"], cost),
    ]  # fmt: skip
    return {
        "title": "Can text answer what was only ever seen?",
        "verdict": said,
        "notes": found.get("notes", []),
        "sections": sections,
        "samples": {},
        "command": None,
        "versions": {},
        "config": "",
    }


_ROUTE = ["route", "unit", "held-out", "order-0", "without source", "wrong source", "gain over wrong", "items"]

_ROUTE_NOTE = """A route uses its source where its gain over a wrong one, another item's, is above two of its standard errors. In brackets: items
that have a wrong source; its cost and the gain are of those alone."""


def _route_note(found: dict[str, Any]) -> str:
    return f"{_ROUTE_NOTE} {partly(found)}".replace("`", "").rstrip()


def _routes(found: dict[str, Any]) -> list[list]:
    rows, unit = [], {"t": "bits_per_byte", "v": "bits_per_frame"}
    for name, row in found.items():
        shape = ".3f" if name[-1] == "t" else ".1f"
        keys = (unit[name[-1]], "order0", "without_source", "wrong_source")
        gain = (
            _interval(row["wrong_source_gain"], row["wrong_source_gain_stderr"], shape) if "wrong_source_gain" in row else "–"
        )
        of = row.get("wrong_source_n")  # the wrong source and the gain are of those alone
        items = f"{row['n']:,}" + (f" ({of:,})" if of else "") if "n" in row else "–"
        rows.append(
            [name, unit[name[-1]].replace("bits_per_", "bits/"), *(_number(row.get(k), shape) for k in keys), gain, items]
        )
    return rows


def _endpoints(found: dict[str, Any], arms: list[str]) -> list[dict[str, Any]]:
    """Held-out text by kind of word, and what text knows."""

    def gain(g: dict[str, Any] | None, shape: str) -> str:
        if g is None:
            return "–"
        p = f", p {_number(g['p'], '.2g')}" if g.get("p") is not None else ""
        return _number(g["mean"], shape) + ("" if g["low"] is None else f" ({_ends(g['low'], g['high'], shape)}{p})")

    main = [a for a in arms if not a.startswith("text-x")]
    rows = [
        [kind, f"{r['bytes']:,}", *(_interval(r["arms"][a]["mean"], r["arms"][a]["half"]) if a in r["arms"] else "–" for a in ("text", "captions", "four")),
         gain(r["saved"]["text"], "+.4f"), gain(r["saved"]["captions"], "+.4f")]
        for kind, r in found["words"].items()
    ]  # fmt: skip
    head = ["kind of word", "bytes", "text", "captions", "four", "four saves over text", "over captions"]
    note = "Bits per byte. A word came with a frame if it stands in a caption of a picture or clip that was trained on. Intervals: 95 %, over seeds; p by Holm over all comparisons of this section and the next, but for the declared endpoint."
    sections = [_section("Held-out text by kind of word", head, rows, note=note)]
    for task, r in found["tasks"].items():
        rows = [["chance", "", _number(r["chance"], ".3f"), *[""] * len(r["strata"])]]
        rows += [[name, "", _number(value, ".3f"), *[""] * len(r["strata"])] for name, value in r["baselines"].items()]
        for a in (a for a in main if a in r["arms"]):
            parts = [_number(s["arms"].get(a), ".3f") for s in r["strata"].values()]
            rows.append([a, r["arms"][a]["seeds"], _interval(r["arms"][a]["mean"], r["arms"][a]["half"], ".3f"), *parts])
        heads = [
            "answered by",
            "seeds",
            "accuracy",
            *(f"fact {name} in the text ({s['n']:.0f})" for name, s in r["strata"].items()),
        ]
        said = f"{r['n']} questions. Four minus captions: {gain(r['gained']['captions'], '+.3f')}; minus text: {gain(r['gained']['text'], '+.3f')}."
        sections.append(_section(f"What text knows: {task}", heads, rows, note=said))
    return sections


def _findings(found: dict[str, Any]) -> dict[str, Any]:
    """What pictures hold that text does not."""
    from quadrivium.findings import rows

    shown: list[list] = []
    named = {"shuffled": "its earlier frames in another order", "other clip": "the earlier frames of another clip"}
    for source, by in found["visual_context"].items():
        for condition, words in named.items():
            if "dearer" in (r := by.get(condition, {})):
                value = f"{_number(r['dearer'], '.1f')} ± {_number(r['dearer_stderr'], '.1f')}"
                what = f"bits by which a last frame is dearer after {words}"
                shown.append(["visual context", source.removeprefix("v2v/"), what, value, r["n"]])
    shown += [[*words, value.replace("-", "−"), n] for *words, value, n in rows(found)]
    note = "By this model's own costs, on held-out items. Intervals: 95 %, over groups; ± standard error. Redrawings: samples/round-trip.png."
    return _section("What pictures hold that text does not", ["finding", "source", "what", "value", "items"], shown, note=note)


def _run(found: dict[str, Any]) -> dict[str, Any]:
    """One run, as `quadrivium eval` measured it."""
    sections, said = [], ""
    if routes := found.get("routes"):
        sections.append(_section("Held-out cost of every route", _ROUTE, _routes(routes), note=_route_note(routes)))
        text = routes.get("t2t")
        said = "" if text is None else f"Held-out text costs {_number(text['bits_per_byte'], '.3f')} bits a byte."
    if any((seen := found.get("findings") or {}).values()):
        sections.append(_findings(seen))
    if aligned := found.get("alignment"):
        said, more = _alignment(aligned)
        sections += more
    return {
        "title": "What one run learnt", "verdict": said or "The routes of one run.", "notes": [], "sections": sections, "samples": {},
        "command": None, "versions": {}, "config": "",
    }  # fmt: skip


def _alignment(found: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """What is said of keys and queries, and its sections: curves of every source, and the probe."""
    from quadrivium.alignment import PAIRS

    first, last, at, sections = found["steps"][0], found["steps"][-1], found["layer"] - 1, []
    random = found["rank"] / found["head_size"]
    source = max(last["sources"], key=lambda s: s == "kinds")
    best = last["sources"][source][PAIRS[0]][at]
    word = "are more alike than chance" if best["p"] < 0.05 else "are not shown to be alike"
    said = (
        f"Keys of text and of frames {word}: {source}, layer {at + 1}, step {last['step']}: {_number(best['overlap'], '.3f')} of the nearest "
        f"neighbours in common, {_number(best['null'], '.3f')} with items permuted (p {_number(best['p'], '.3f')})."
    )
    if first["step"] == 0:
        said += f" Before the first step: {_number(first['sources'][source][PAIRS[0]][at]['overlap'], '.3f')}."
    for name, row in last["sources"].items():
        layers = range(1, 1 + len(row[PAIRS[0]]))
        lines = [(p.replace(" ", " ~ "), list(layers), [c["overlap"] for c in row[p]]) for p in PAIRS]
        lines.append(("permuted", list(layers), [row[PAIRS[0]][i - 1]["high"] for i in layers]))
        table = [[p.replace(" ", " ~ "), i + 1, _number(c["overlap"], ".3f"), _number(c["null"], ".3f"), _number(c["p"], ".3f"),
                  _number(c["angles"], ".3f")] for p in PAIRS for i, c in enumerate(row[p])]  # fmt: skip
        sections.append(
            _section(
                f"Alignment by layer: {name}",
                ["pair", "layer", "neighbours in common", "permuted", "p", "angles"],
                table,
                _lines(lines, "layer", "neighbours in common"),
                f"Step {last['step']}, {row['n']} items, {row['k']} neighbours. Permuted: what 95 % of permutations stay below. "
                f"Angles: {random:.3f} for random directions. Layer {at + 1} was declared beforehand.",
            )
        )
        if len(found["steps"]) > 2:
            steps = [s["step"] for s in found["steps"]]
            curves = [[s["sources"][name][p][at] for s in found["steps"]] for p in PAIRS]
            lines = [
                (p.replace(" ", " ~ "), steps, [c["overlap"] for c in curve]) for p, curve in zip(PAIRS, curves, strict=True)
            ]
            lines.append(("permuted", steps, [c["high"] for c in curves[0]]))
            picture = _lines(lines, "step", "neighbours in common")
            sections.append(_section(f"Alignment through training: {name}", [], [], picture, f"Layer {at + 1}."))
    probed, rows = found["probe"], []
    for how in ("zero", "swap"):
        for what, r in probed[how].items():
            others = f"{_number(min(r['controls']), '+.3f')} to {_number(max(r['controls']), '+.3f')}"
            rows.append(
                [
                    what,
                    how,
                    _number(probed["plain"][what], ".3f"),
                    f"{_number(r['change'], '+.3f')} ± {_number(r['stderr'], '.3f')}",
                    others,
                    _number(r.get("p"), ".2f"),
                ]
            )
    sections.append(
        _section("What text loses without the visual part of its keys", ["text", "how", "plain", "change", "controls", "p"], rows,
                 note=f"{probed['rank']} of {found['head_size']} directions a head, those of most variance of visual keys, which hold "
                 f"{probed['share']:.1%} of the variance of text's; controls are random directions that hold as much; p: by rank among them. ± standard error.")
    )  # fmt: skip
    return said, sections


def _ends(low: float | None, high: float | None, shape: str) -> str:
    return "–" if low is None else f"{_number(low, shape)} to {_number(high, shape)}"


def _interval(mean: float, half: float | None, shape: str = ".4f") -> str:
    return _number(mean, shape) + ("" if half is None else f" ± {_number(half, shape.lstrip('+'))}")


def _section(title: str, head: list[str], rows: list[list], picture: str = "", note: str = "") -> dict[str, Any]:
    return {"title": title, "head": head, "rows": rows, "picture": picture, "note": note}


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")  # narrow: its letters are still read on a phone
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK["soft"])
    axes.tick_params(colors=_INK["ink"], labelsize=9)
    return figure, axes


def _svg(figure: Any, says: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": says}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    for name, colour in _INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg[svg.index("<svg") :])
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return svg.replace("<svg", f'<svg role="img" aria-label="{says}"', 1)


def _forest(points: list[tuple], label: str, line: float) -> str:
    """Estimates with intervals, a row each; ``line`` is what they are compared with. One without an interval is hollow."""
    if not points:
        return ""
    figure, axes = _figure(0.9 + 0.26 * len(points))
    axes.axvline(line, color=_INK["soft"], linewidth=1)
    for y, (_, mean, low, high) in enumerate(points):
        if low is not None:
            axes.plot([low, high], [y, y], color=_INK["mark"], linewidth=2, solid_capstyle="round")
        axes.plot(
            [mean], [y], "o", markersize=5, color=_INK["mark"], markerfacecolor=_INK["mark"] if low is not None else "none"
        )
    axes.set_yticks(range(len(points)), [p[0] for p in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label, color=_INK["ink"], fontsize=9)
    return _svg(figure, label)


def _lines(series: list[tuple[str, list, list]], across: str, up: str) -> str:
    """Lines, named at their ends; the last is what they are compared with."""
    figure, axes = _figure(2.8)
    for i, (_, x, y) in enumerate(series):
        reference = i == len(series) - 1
        colour = _INK["soft"] if reference or i == 1 else _INK["mark" if i == 0 else "ink"]
        axes.plot(
            x, y, color=colour, linewidth=2 if i == 0 else 1.5, linestyle="--" if reference else "-", marker="o", markersize=3
        )
    for height, name, colour in _apart([(s[2][-1], s[0]) for s in series]):
        axes.annotate(name, (1.01, height), xycoords=("axes fraction", "data"), color=_INK[colour], fontsize=9, va="center")
    axes.set_ylim(bottom=0)
    if across == "layer":
        axes.set_xticks(series[0][1])
    axes.set_xlabel(across, color=_INK["ink"], fontsize=9)
    axes.set_ylabel(up, color=_INK["ink"], fontsize=9)
    return _svg(figure, f"{up} by {across}")


def _apart(ends: list[tuple[float, str]]) -> list[tuple[float, str, str]]:
    """Heights at which names of lines do not cover each other, names and colours."""
    gap, placed = 0.08 * max(max(y for y, _ in ends), 1e-9), list[tuple[float, str, str]]()
    colours = ["mark", "soft", "ink", "soft"]
    for y, name, colour in sorted((y, name, colours[i]) for i, (y, name) in enumerate(ends)):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, name, colour))
    return placed


def _curve(ladder: dict[str, Any]) -> str:
    import numpy as np
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure, axes = _figure(2.6)
    tokens, c = np.array(ladder["tokens"]), ladder["effective"]["curve"]
    x = np.geomspace(tokens.min(), tokens.max(), 100)
    axes.plot(x, c["floor"] + c["scale"] * (x / c["unit"]) ** -c["exponent"], color=_INK["soft"], linewidth=1.5)
    axes.plot(tokens, ladder["costs"], "o", color=_INK["ink"], markersize=5)
    axes.axhline(ladder["four"], color=_INK["mark"], linewidth=2)
    axes.annotate("all routes", (tokens.max(), ladder["four"]), color=_INK["mark"], fontsize=9, ha="right", va="bottom")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    marked = np.sort(tokens)[:1]
    for rung in np.sort(tokens)[1:]:  # one too near the last has no room for its number
        if np.log(rung / marked[-1]) > 0.12 * np.log(tokens.max() / tokens.min()):
            marked = np.append(marked, rung)
    axes.set_xticks(marked)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v / 1e6:.3g}M" if v >= 1e6 else f"{v / 1e3:.3g}k" if v >= 1e3 else f"{v:.0f}")
    )
    axes.set_xlabel("ids of unique text, text alone", color=_INK["ink"], fontsize=9)
    axes.set_ylabel("bits per byte", color=_INK["ink"], fontsize=9)
    return _svg(figure, "Cost of held-out text on a ladder of text")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1e23; --soft: #8a919c; --mark: #0b62c4; --page: #fff; --line: #dde1e7; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #868e9a; --mark: #6db3ff; --page: #14161a; --line: #31353c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1rem; font-weight: 400; color: var(--soft); margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; break-after: avoid; }
.verdict { font-size: 1.35rem; line-height: 1.35; border-left: 4px solid var(--mark); padding-left: .8rem; margin: 0 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .words { text-align: left; }
td.words { white-space: normal; min-width: 11rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: .6rem 0; }
img { max-width: 100%; height: auto; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
table, svg, img { break-inside: avoid; }
.verdict, p { max-width: 54rem; }
p.note { font-size: .9rem; margin: .4rem 0; }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } table { font-size: 7.8pt; } td, th { padding-inline: .25rem; } .wide { overflow: visible; } details { display: none; } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
{% for s in sections %}
<section><h2>{{ s.title }}</h2>
{{ s.picture | safe }}
{% if s.note %}<p class="note">{{ s.note }}</p>{% endif %}
{% if s.rows %}<div class="wide"><table><thead><tr>{% for h in s.head %}<th{% if h in words %} class="words"{% endif %}>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in s.rows %}<tr>{% for cell in row %}<td{% if s.head[loop.index0] in words %} class="words"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
</section>
{% endfor %}
{% if samples %}<section><h2>Held-out items: given, wanted, generated</h2>
{% for route, png in samples.items() %}<h3>{{ route }}</h3><img alt="{{ route }}: given, wanted, generated" src="data:image/png;base64,{{ png }}">
{% endfor %}</section>{% endif %}
{% if command %}<section><h2>How it was made</h2><pre>{{ command }}</pre>
<p class="note">{% for name, v in versions.items() %}{{ name }} {{ v }}{{ "" if loop.last else ", " }}{% endfor %}</p></section>{% endif %}
{% if config %}<details><summary>Every option</summary><pre>{{ config }}</pre></details>{% endif %}
</body></html>
"""
