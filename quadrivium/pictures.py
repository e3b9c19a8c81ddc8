"""Frames to files that people open: PNG, GIF, MP4, and contact sheets of pictures and text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence as Seq
from fractions import Fraction
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


def legible(text: str) -> str:
    """The text without control characters, which a model that has learnt little writes and no layout takes; or a sentence in
    its place where it would come out as boxes: no font here has Japanese letters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if any(ord(c) > 0x2E7F for c in text) and _japanese() is None:
        return "(Japanese: no font for it on this machine; the text stands in the page or file beside)"
    return text


def _japanese() -> str | None:
    return next((path for path in _FONTS if Path(path).is_file()), None)


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
