"""Frames to files that people open: PNG, GIF, MP4, and contact sheets of pictures and text. Text to frames: pages of it."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Cell = np.ndarray | str | None  # frames uint8 (F, S, S, 3), a text, or nothing

_FONTS = (  # Pillow's own font has no Japanese; these are where common systems keep one that has
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/fonts-japanese-gothic.ttf",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "C:/Windows/Fonts/msgothic.ttc",
)


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of ``size`` pixels; for text beyond Latin, one that has its letters where the system keeps one."""
    path = _japanese() if any(ord(c) > 0x24F for c in text) else None
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


_WIDE = re.compile("[\u2e80-\U0010ffff]+")
_NO_FONT = "(Japanese: no font for it on this machine; the text stands in the page or file beside)"


def legible(text: str) -> str:
    """The text without control characters, at some of which the layout of text fails; [ja] for what would come out as boxes, because
    no font here has Japanese letters, and a sentence where that is all."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    if _japanese() is not None or not _WIDE.search(text):
        return text
    some = _WIDE.sub("[ja]", text)
    return some if any(c.isalnum() for c in some.replace("[ja]", "")) else _NO_FONT


def _japanese() -> str | None:
    return next((path for path in _FONTS if Path(path).is_file()), None)


LETTER = 6, 11  # width and height in pixels of a letter on a page; a wide one, such as a Japanese one, takes two places
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": ".", "\u3000": " "})


@cache
def _letter(c: str) -> tuple[int, np.ndarray]:
    """Places that a letter takes, and which pixels of them are ink: bool (11, 6 or 12). ValueError where no font has it."""
    width, height = LETTER
    c = c.translate(_PLAIN)
    c = c if c.isprintable() else " "
    places = 2 if unicodedata.east_asian_width(c) in "WF" else 1
    letters: ImageFont.ImageFont | ImageFont.FreeTypeFont | None = (
        ImageFont.load_default_imagefont()
    )  # a bitmap: sharp when small
    if ord(c) > 0xFF:
        path = _japanese()
        letters = ImageFont.truetype(path, height - 1) if path else None
        absent = letters is not None and bytes(letters.getmask(c)) == bytes(letters.getmask("\uffff"))
        if letters is None or absent:
            raise ValueError(f"no font here has the letter {c}")
    image = Image.new("L", (places * width, height))
    ImageDraw.Draw(image).text((0, 0), c, fill=255, font=letters)
    return places, np.asarray(image) > 127


def _places(text: str, size: int) -> Iterator[tuple[int, int, int]]:
    """Page, row and column of every letter of a text on pages of ``size`` x ``size`` pixels."""
    columns, rows = size // LETTER[0], size // LETTER[1]
    if rows < 1 or columns < 2:
        raise ValueError(f"frames of {size} pixels hold no line of text; take at least {max(LETTER[1], 2 * LETTER[0])}")
    page = row = column = 0
    for c in text:
        wide = 0 if c == "\n" else _letter(c)[0]
        if column + wide > columns:
            row, column = row + 1, 0
        if row == rows:
            page, row = page + 1, 0
        yield page, row, column
        row, column = (row + 1, 0) if c == "\n" else (row, column + wide)


def pages(text: str, size: int) -> list[str]:
    """Cut a text into what stands on each page of ``size`` x ``size`` pixels; the pages joined are the text.

    Lines are cut where they are full, as on a terminal: with ten letters a line, keeping words whole would waste a third.
    Raises ValueError for a letter that no font here has.
    """
    found: list[str] = []
    for c, (page, _, _) in zip(text, _places(text, size), strict=True):
        if page == len(found):
            found.append("")
        found[page] += c
    return found


def render(text: str, size: int) -> np.ndarray:
    """The `pages` of a text, black on white: uint8 (F, size, size, 3)."""
    (width, height), frames = LETTER, np.full((len(pages(text, size)), size, size, 3), 255, np.uint8)
    for c, (page, row, column) in zip(text, _places(text, size), strict=True):
        if c != "\n":
            wide, ink = _letter(c)
            frames[page, row * height :, column * width :][:height, : wide * width][ink] = 0
    return frames


def save_png(frames: np.ndarray, path: Path, scale: int = 1) -> None:
    """Frames uint8 (F, S, S, 3) side by side."""
    enlarge(Image.fromarray(np.concatenate(list(frames), axis=1)), scale).save(path)


def save_gif(frames: np.ndarray, path: Path, fps: float = 4.0, scale: int = 1) -> None:
    """Frames uint8 (F, S, S, 3) as an endless animation."""
    images = [enlarge(Image.fromarray(f), scale) for f in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)


def save_mp4(frames: np.ndarray, path: Path, fps: float = 4.0, scale: int = 1) -> None:
    """Frames uint8 (F, S, S, 3) as H.264; sides are made even, as the codec wants them."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = (2 * -(-side * scale // 2) for side in (frames.shape[2], frames.shape[1]))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
        for frame in frames:
            image = enlarge(Image.fromarray(frame), scale).resize((stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) if scale > 1 else image


def sheet(rows: Seq[Seq[Cell]], heads: Seq[str], title: str, scale: int = 2, text_width: int = 260) -> Image.Image:
    """A table of frames and texts as one picture; a cell of several frames shows them side by side."""
    pad, size = 8, 13
    columns = len(heads)
    rows = [[legible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]

    def lines(text: str) -> list[str]:
        wide = any(ord(c) > 0x2E7F for c in text)  # Japanese letters are twice as wide and have no spaces to break at
        return textwrap.wrap(text, text_width // (size if wide else 7)) or [""]

    def extent(cell: Cell) -> tuple[int, int]:
        if cell is None:
            return 0, 0
        if isinstance(cell, str):
            return text_width, (size + 4) * min(len(lines(cell)), 9)
        return cell.shape[0] * (cell.shape[2] * scale + 2), cell.shape[1] * scale

    widths = [max([60, 7 * len(heads[c]), *(extent(r[c])[0] for r in rows)]) for c in range(columns)]
    heights = [max(20, *(extent(cell)[1] for cell in r)) for r in rows]
    top = 52
    image = Image.new("RGB", (sum(widths) + pad * (columns + 1), top + sum(heights) + pad * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((pad, 6), title, fill="black", font=font(17, title))
    lefts = [pad + sum(widths[:c]) + pad * c for c in range(columns)]
    for left, head in zip(lefts, heads, strict=True):
        draw.text((left, 32), head, fill="#666666", font=font(size))
    y = top
    for row, height in zip(rows, heights, strict=True):
        draw.line((pad, y - pad // 2, image.width - pad, y - pad // 2), fill="#dddddd")
        for left, cell in zip(lefts, row, strict=True):
            if isinstance(cell, str):
                for i, line in enumerate(lines(cell)[:9]):
                    draw.text((left, y + i * (size + 4)), line, fill="black", font=font(size, line))
            elif cell is not None:
                for i, frame in enumerate(cell):
                    picture = enlarge(Image.fromarray(frame), scale)
                    image.paste(picture, (left + i * (picture.width + 2), y))
        y += height + pad
    return image
