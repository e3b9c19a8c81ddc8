"""The diagram of the model in docs/how-it-works.md: python docs/diagram.py

Writes docs/pictures/model.svg: left, what a sequence of a caption and a picture passes through, from bottom to top; right,
which of those parts text and vision have in common in each sharing scheme.
"""

from pathlib import Path

PICTURE = Path(__file__).parent / "pictures" / "model.svg"
TEXT, VISION, BOTH = ("#dbe8fb", "#2f62b5"), ("#fde6cf", "#b5651d"), ("#e4efdc", "#4b7a34")  # fill and line
INK, SOFT = "#1b1e23", "#5d6570"


def box(x: float, y: float, width: float, height: float, colour: tuple[str, str], *lines: str) -> str:
    """A rectangle with lines of text in its middle, the first of them strong."""
    fill, line = colour
    drawn = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{line}"/>\n'
    for i, words in enumerate(lines):
        at = y + height / 2 + 5 + 17 * (i - (len(lines) - 1) / 2)
        drawn += word(x + width / 2, at, words, "middle", INK if i == 0 else SOFT, 14 if i == 0 else 12)
    return drawn


def word(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, size: int = 13, weight: int = 400) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" font-weight="{weight}">{words}</text>\n'


def arrow(x: float, y: float, to: float) -> str:
    return f'<path d="M{x} {y}V{to + 1}" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>\n'


def flow() -> str:
    """The text stream at x 20 to 220, the visual stream at 240 to 440; what is common spans both."""
    left, right, wide, across = 20, 240, 200, 420
    drawn = word(left, 30, "From a caption to its picture (t2v), with --sharing attention", size=15, weight=600)
    drawn += box(left, 560, wide, 56, TEXT, "text ids", "given: a red ball")
    drawn += box(right, 560, wide, 56, VISION, "cells of 2 x 2 codes", "wanted, one after the other")
    drawn += box(left, 480, wide, 44, TEXT, "embedding of ids")
    drawn += box(right, 480, wide, 44, VISION, "embeddings of codes,", "row and column")
    drawn += f'<rect x="{left - 10}" y="196" width="{across + 20}" height="252" rx="8" fill="none" stroke="{SOFT}" stroke-dasharray="5 4"/>\n'
    drawn += word(left + across / 2, 216, "block, once for every layer", "middle", SOFT, 12)
    drawn += box(
        left, 388, across, 48, BOTH, "norm, then queries, keys and values", "rotary positions on three axes: time, row, column"
    )
    drawn += box(
        left,
        314,
        across,
        50,
        BOTH,
        "causal attention over the whole sequence",
        "cells look at the words, words at cells before them",
    )
    drawn += box(left, 232, wide, 50, TEXT, "norm, feed-forward", "SwiGLU, text positions")
    drawn += box(right, 232, wide, 50, VISION, "norm, feed-forward", "SwiGLU, visual positions")
    drawn += box(left, 134, across, 34, BOTH, "norm")
    drawn += box(left, 56, wide, 46, TEXT, "text head", "the next id")
    drawn += box(right, 56, wide, 46, VISION, "code head", "a cell, code after code")
    for x in (left + wide / 2, right + wide / 2):
        for start, end in ((560, 524), (480, 448), (388, 364), (314, 282), (232, 168), (134, 102)):
            drawn += arrow(x, start, end)
    return drawn


def schemes() -> str:
    """Each scheme as a small tower: a wide box is common to both modalities, two are apart."""
    drawn = word(540, 30, "What text and vision share", size=15, weight=600)
    block = ("heads", "norm", "feed-forward", "attention", "embeddings")
    towers = (
        ("all", block, ("norm", "feed-forward", "attention")),
        ("attention", block, ("norm", "attention")),
        ("none", block, ()),
        ("cross", ("heads", "norm", "decoders", "encoders", "embeddings"), ()),
    )
    y = 54
    for name, parts, common in towers:
        drawn += word(540, y + 8, f"--sharing {name}", size=14, weight=600)
        y += 16
        for part in parts:
            if part == "encoders":  # every decoder asks both
                for x, to in ((680, 680), (680, 770), (770, 680), (770, 770)):
                    drawn += f'<path d="M{x} {y + 19}L{to} {y}" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>\n'
                y += 20
            drawn += word(540, y + 15, part, colour=SOFT, size=12)
            if part in common:
                drawn += box(640, y, 170, 20, BOTH)
            else:
                drawn += box(640, y, 81, 20, TEXT) + box(729, y, 81, 20, VISION)
            y += 24
        y += 16
    return drawn


def render() -> str:
    """The picture as SVG on white, so that it reads on dark pages too."""
    tip = f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker>'
    says = "The transformer from ids and codes at the bottom to the two heads at the top, and what each sharing scheme has in common"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 830 690" font-family="system-ui, sans-serif" role="img" '
        f'aria-label="{says}">\n<defs>{tip}</defs>\n<rect width="830" height="690" fill="#fff"/>\n{flow()}{schemes()}</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(render(), encoding="utf-8")
    print(f"written: {PICTURE}")
