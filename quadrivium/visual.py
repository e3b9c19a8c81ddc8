"""The visual tokenizer: frames to a grid of codes and back, a convolutional autoencoder with finite scalar quantisation.

Shape letters: n or B frames, S side in pixels, R rows and C columns of codes, D numbers in a code, W width.

FSQ (Mentzer et al. 2023, arXiv 2309.15505): each cell is D numbers, each rounded to one of a few levels; the code is the
index of that combination. There is no codebook to learn or to collapse, and rounding is passed straight through by the
gradient. The network works on cells of ``down`` x ``down`` pixels from its first layer on: the same arithmetic at full
resolution costs many times as much. Beside it, on both sides of the codes, runs a linear map over windows that overlap by
half, as in the transform coders of audio and pictures: it is learnt in the first seconds, and the network adds to it what
is not linear.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from quadrivium.config import from_dict
from quadrivium.data.shards import read_json, tensor_shapes, write_atomic, write_json
from quadrivium.errors import ConfigError, RunError

_KIND = "quadrivium visual tokenizer 2"  # a folder that says something else is not ours


@dataclass(frozen=True)
class VisualConfig:
    """Shape of the tokenizer. A frame becomes (size / down * per_side)^2 codes, each one of prod(levels) values."""

    size: int = 64  # side of a frame in pixels
    down: int = 4  # side of a cell in pixels
    levels: tuple[int, ...] = (8, 5, 5, 5)  # values of each number of a code; 1000 codes
    per_side: int = 1  # a cell has per_side x per_side codes, which share what the cell's pixels are, unlike smaller cells
    width: int = 64  # channels of its convolutions
    encoder_depth: int = 2  # residual blocks; with 0 a code is of its cell and what lies next to it
    decoder_depth: int = 4  # residual blocks: drawing what a code leaves out is the harder half

    def __post_init__(self) -> None:
        for name in ("size", "down", "per_side", "width", "encoder_depth", "decoder_depth"):
            if getattr(self, name) < (0 if name.endswith("depth") else 1):
                raise ConfigError(f"visual.{name} is {getattr(self, name)}; it has to be positive")
        for name, most in (("size", 4096), ("width", 8192), ("encoder_depth", 256), ("decoder_depth", 256), ("per_side", 64)):
            if getattr(self, name) > most:
                raise ConfigError(f"visual.{name} is {getattr(self, name)}; it is at most {most}")
        if self.size % self.down:
            raise ConfigError(f"visual.size ({self.size}) has to be a multiple of visual.down ({self.down})")
        if not self.levels or len(self.levels) > 16 or min(self.levels) < 2 or math.prod(self.levels) > 65535:
            raise ConfigError(f"visual.levels is {self.levels}; each is at least 2 and their product at most 65535")


class _Block(nn.Module):
    """Two 3 x 3 convolutions on a residual path that starts at zero. Their kernels are matrices (W, 9 W), as Muon wants them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = (9 * width) ** -0.5
        self.first = nn.Parameter(torch.empty(width, 9 * width).uniform_(-bound, bound))
        self.first_bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.second = nn.Parameter(torch.zeros(width, 9 * width))
        self.second_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.relu(x), self.first.unflatten(1, (-1, 3, 3)), self.first_bias, padding=1)
        return x + F.conv2d(F.relu(y), self.second.unflatten(1, (-1, 3, 3)), self.second_bias, padding=1)


def _network(before: nn.Module, blocks: int, width: int, after: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(before=before, blocks=nn.Sequential(*[_Block(width) for _ in range(blocks)]), after=after))


class VisualTokenizer(nn.Module):
    """``rows`` x ``columns`` codes a frame (``codes_per_frame``), each below ``n_codes``. Raises ConfigError."""

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.config = config
        cells, numbers, width = config.size // config.down, len(config.levels), config.width
        self.rows = self.columns = cells * config.per_side
        self.codes_per_frame, self.n_codes = self.rows * self.columns, math.prod(config.levels)
        pixels, latent = 3 * config.down**2, numbers * config.per_side**2
        overlap = config.down // 2
        self.analysis = nn.Conv2d(3, latent, config.down + 2 * overlap, config.down, overlap)
        self.synthesis = nn.ConvTranspose2d(latent, 3, config.down + 2 * overlap, config.down, overlap)
        self.encoder = _network(
            nn.Sequential(nn.PixelUnshuffle(config.down), nn.Conv2d(pixels, width, 3, padding=1)),
            config.encoder_depth,
            width,
            nn.Conv2d(width, latent, 1),
        )
        self.decoder = _network(
            nn.Conv2d(latent, width, 3, padding=1),
            config.decoder_depth,
            width,
            nn.Sequential(nn.Conv2d(width, pixels, 3, padding=1), nn.PixelShuffle(config.down)),
        )
        self.levels: Tensor  # (D, 1, 1)
        self.base: Tensor  # (D, 1, 1): what one step of each digit is worth in the code
        self.register_buffer("levels", torch.tensor(config.levels).view(-1, 1, 1), persistent=False)
        base = torch.tensor([math.prod(config.levels[d + 1 :]) for d in range(numbers)]).view(-1, 1, 1)
        self.register_buffer("base", base, persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, 3, S, S) in [-1, 1] -> reconstruction of that shape, unclamped, and codes (B, R, C) int64.

        S may be any multiple of ``down`` here: the network is the same everywhere, and training reads parts of frames.
        """
        digits = self._digits(frames)
        return self._draw(digits), (digits.detach().long() * self.base).sum(1)

    def _digits(self, frames: Tensor) -> Tensor:
        """(B, 3, S, S) -> whole numbers (B, D, R, C), each from 0 to its level - 1; gradient passes the rounding."""
        z = self._spread(self.analysis(frames) + self.encoder(frames))
        x = torch.sigmoid(1.6 * z) * (self.levels - 1)  # 1.6: a normal z then uses the levels nearly equally
        return x + (x.round() - x).detach()

    def _draw(self, digits: Tensor) -> Tensor:
        """(B, D, R, C) -> (B, 3, S, S)."""
        z = self._gather(digits * (2 / (self.levels - 1)) - 1)
        return self.synthesis(z) + self.decoder(z)

    def _spread(self, z: Tensor) -> Tensor:
        """A cell's numbers (B, D p^2, R / p, C / p) -> (B, D, R, C): its p x p codes as neighbours in the grid."""
        return F.pixel_shuffle(z, self.config.per_side)

    def _gather(self, z: Tensor) -> Tensor:
        """The inverse of `_spread`."""
        return F.pixel_unshuffle(z, self.config.per_side)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @torch.no_grad()
    def encode(self, frames: np.ndarray, batch: int = 256) -> np.ndarray:
        """Frames uint8 (n, S, S, 3) -> codes uint16 (n, R, C)."""
        size = self.config.size
        if frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or frames.dtype != np.uint8:
            raise ConfigError(f"frames are {frames.dtype} {frames.shape}; this tokenizer reads uint8 (n, {size}, {size}, 3)")
        codes = np.empty((len(frames), self.rows, self.columns), np.uint16)
        for i in range(0, len(frames), batch):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU gives the codes that a processor does
                digits = self._digits(_to_float(frames[i : i + batch], self.device))
            codes[i : i + batch] = (digits.long() * self.base).sum(1).cpu().numpy()
        return codes

    @torch.no_grad()
    def decode(self, codes: np.ndarray, batch: int = 256) -> np.ndarray:
        """Codes (n, R, C) of any integer type -> frames uint8 (n, S, S, 3)."""
        if codes.ndim != 3 or codes.shape[1:] != (self.rows, self.columns):
            raise ConfigError(f"codes are {codes.shape}; this tokenizer draws (n, {self.rows}, {self.columns})")
        if codes.size and (codes.min() < 0 or codes.max() >= self.n_codes):
            raise ConfigError(f"codes run from {codes.min()} to {codes.max()}; they lie in 0 .. {self.n_codes - 1}")
        frames = np.empty((len(codes), self.config.size, self.config.size, 3), np.uint8)
        for i in range(0, len(codes), batch):
            codes_BRC = torch.from_numpy(codes[i : i + batch].astype(np.int64)).to(self.device)
            digits = codes_BRC[:, None] // self.base % self.levels
            frames[i : i + batch] = _to_bytes(self._draw(digits.float()))
        return frames

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        write_atomic(
            folder / "model.safetensors", save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()})
        )
        write_json(folder / "config.json", {"kind": _KIND, **asdict(self.config)})  # last: its presence says complete

    @classmethod
    def load(cls, folder: Path) -> VisualTokenizer:
        """Read what `save` wrote; nothing in it is executed. Raises RunError: missing, damaged or something else."""
        values = read_json(folder / "config.json", "a visual tokenizer")
        if values.pop("kind", None) != _KIND:
            raise RunError(f"{folder / 'config.json'}: this is not a visual tokenizer of this version")
        try:
            config = from_dict(VisualConfig, values, "visual")
            with torch.device("meta"):
                wanted = {name: tuple(value.shape) for name, value in cls(config).state_dict().items()}
            if tensor_shapes(folder / "model.safetensors") != wanted:  # before memory is taken for either
                raise RuntimeError("names or shapes of weights differ from config.json")
            tokenizer = cls(config)
            tokenizer.load_state_dict(load_file(folder / "model.safetensors"))
        except ConfigError as error:
            raise RunError(f"{folder / 'config.json'}: {error}; prepare the data again") from None
        except (SafetensorError, RuntimeError, OSError) as error:
            first = str(error).splitlines()[0]
            raise RunError(f"{folder / 'model.safetensors'}: damaged or of another shape ({first:.120})") from None
        return tokenizer.eval()


class VisualTask:
    """What the training loop needs: the tokenizer learning to redraw frames.

    ``frames`` uint8 (n, S, S, 3), best memory-mapped; ``source_of`` (n,) whole numbers; ``held`` (n,) bool, never learnt
    from; ``names`` of the sources for the report. A frame of a batch is drawn by source first, each source with a weight
    in proportion to the square root of its frames, so that a small source is seen and a large one still leads. What is
    learnt from is a square of half the frame's side, anywhere in it: four times the steps at the same cost. Corners are drawn
    beyond the frame and moved back into it, so that the frame's edges, next to which nothing is known, are met often. Of
    four such parts one is kept, drawn in proportion to its detail (the spread of pixels inside cells): blank paper and
    smooth ground teach little.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        frames: np.ndarray,
        source_of: np.ndarray,
        held: np.ndarray,
        seed: int,
        batch_size: int,
        names: Sequence[str] | None = None,
    ) -> None:
        self.model, self.frames, self.seed, self.batch_size = tokenizer, frames, seed, batch_size
        self.source_of = source_of
        sources = [int(i) for i in np.unique(source_of)]
        self.names = {i: names[i] if names else f"source {i}" for i in sources}
        self.held = {i: np.flatnonzero((source_of == i) & held) for i in sources}
        known = [np.flatnonzero((source_of == i) & ~held) for i in sources]
        self.known = [k for k in known if len(k)]
        if not self.known:
            raise ConfigError("the visual tokenizer has no frames to learn from: all are held out")
        weights = np.sqrt([len(k) for k in self.known])
        self.weights = weights / weights.sum()
        self.crop = tokenizer.config.down * -(-tokenizer.config.size // tokenizer.config.down // 2)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Tensor:
        """Squares of frames (B, 3, crop, crop) in [-1, 1] of a step, or of one of its ``parts``: a function of (seed, step)."""
        draw, crop, size = np.random.default_rng([self.seed, step]), self.crop, self.frames.shape[1]
        n, over = 4 * self.batch_size, crop // 4
        frame = self._drawn(draw)
        corners = draw.integers(-over, size - crop + over + 1, (n, 2)).clip(0, size - crop)
        squares = np.stack([self.frames[f][y : y + crop, x : x + crop] for f, (y, x) in zip(frame, corners, strict=True)])
        down = self.model.config.down
        cells = squares.reshape(n, crop // down, down, crop // down, down, 3).astype(np.float32)
        detail = 1 + cells.var((2, 4)).mean((1, 2, 3)) ** 0.5
        # Weighted draw without replacement (Efraimidis and Spirakis 2006, doi 10.1016/j.ipl.2005.11.003).
        kept = np.sort(np.argsort(draw.exponential(size=n) / detail)[: self.batch_size])
        return _to_float(squares[kept[part::parts]], self.model.device)

    def _drawn(self, draw: np.random.Generator) -> list[int]:
        """Frames of a step before the more detailed are picked: source first."""
        source = draw.choice(len(self.known), 4 * self.batch_size, p=self.weights)
        return [int(self.known[s][draw.integers(len(self.known[s]))]) for s in source]

    def items(self, step: int) -> list[str]:
        """Source and number in the sample of the frames that a step draws from."""
        return [
            f"{self.names[int(self.source_of[f])]}, frame {f}" for f in self._drawn(np.random.default_rng([self.seed, step]))
        ]

    def cost(self, held: dict[str, float]) -> float:
        """Minus the mean PSNR of the sources."""
        found = [value for key, value in held.items() if key.endswith(" psnr")]
        return -sum(found) / max(len(found), 1)

    def positions(self, batch: Tensor) -> tuple[int, int]:
        """Codes in a batch; none is padding."""
        n = len(batch) * (self.crop // self.model.config.down * self.model.config.per_side) ** 2
        return n, n

    def wanted(self, batch: Tensor) -> float:
        """Frames in a batch."""
        return len(batch)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """Mean over frames of a frame's mean squared error to the power 3/4.

        The plain mean of squares is nearly all photographs, its logarithm (PSNR itself) nearly all blank paper; this lies
        between. The 1e-4 is 46 dB: nothing is gained by drawing a frame better than that.
        """
        redrawn, _ = self.model(batch)
        error_B = (redrawn - batch).square().mean((1, 2, 3))
        decibel = -10 * (error_B.detach() / 4).clamp_min(1e-10).log10().sum().item()
        return (error_B + 1e-4).pow(0.75).mean(), {"psnr": (decibel, len(batch))}

    def evaluate(self, most: int = 32) -> dict[str, float]:
        """Of each source's held-out frames (at most ``most``, evenly spaced):

        psnr (dB, mean over frames), psnr_pooled (dB, of the mean squared error over frames), ssim (mean over frames),
        perplexity and used (of code values), bits a frame (entropy of the values times codes a frame: what an order-0
        coder pays, beside the log2(n_codes) of a flat one). Keys are "name psnr" and so on.
        """
        training = self.model.training
        out: dict[str, float] = {}
        self.model.eval()
        for source, where in self.held.items():
            if not len(where):
                continue
            where = where[np.linspace(0, len(where) - 1, min(len(where), most)).astype(int)]
            frames = np.stack([self.frames[i] for i in where])
            codes = self.model.encode(frames)
            redrawn = self.model.decode(codes)
            share = np.bincount(codes.ravel(), minlength=self.model.n_codes) / codes.size
            share = share[share > 0]
            entropy = float(-(share * np.log2(share)).sum())
            numbers = {
                "psnr": float(psnr(frames, redrawn).mean()),
                "psnr_pooled": float(-10 * np.log10(max(1e-10, (10 ** (-psnr(frames, redrawn) / 10)).mean()))),
                "ssim": float(ssim(frames, redrawn).mean()),
                "perplexity": 2**entropy,
                "used": float(len(share)),
                "bits": entropy * self.model.codes_per_frame,
            }
            out |= {f"{self.names[source]} {key}": value for key, value in numbers.items()}
        self.model.train(training)
        return out


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of uint8 frames (n, S, S, 3) -> (n,); equal frames get 100."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean((1, 2, 3)) / 255**2
    return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 frames (n, S, S, 3) -> (n,) (Wang et al. 2004, doi 10.1109/TIP.2003.819861).

    Gaussian window of 11 pixels, or the odd number that fits into a smaller frame, sigma 1.5, no padding, on each colour by itself,
    then the mean.
    """
    half = min(5, (min(a.shape[1:3]) - 1) // 2)
    g = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / 1.5) ** 2)
    g = g / g.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, g.view(1, 1, 1, -1)), g.view(1, 1, -1, 1))

    out = []
    for i in range(0, len(a), 64):
        x, y = (torch.from_numpy(v[i : i + 64].astype(np.float64)).permute(0, 3, 1, 2).flatten(0, 1)[:, None] for v in (a, b))
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        out.append(index.mean((1, 2, 3)).view(-1, 3).mean(1).numpy())
    return np.concatenate(out) if out else np.zeros(0)


def picture_sheet(tokenizer: VisualTokenizer, frames: Mapping[str, np.ndarray], path: Path, scale: int = 2) -> None:
    """Write a PNG: for each source, its frames uint8 (n, S, S, 3) above what the codes bring back, with the mean PSNR."""
    from PIL import Image, ImageDraw

    side, head = tokenizer.config.size * scale, 18
    most = max([1, *(len(v) for v in frames.values())])
    sheet = Image.new("RGB", (side * most, len(frames) * (2 * side + head)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, before) in enumerate(frames.items()):
        after = tokenizer.decode(tokenizer.encode(before))
        top = row * (2 * side + head)
        text = f"{name}: frames above, their {tokenizer.codes_per_frame} codes drawn below, {psnr(before, after).mean():.1f} dB"
        draw.text((4, top + 3), text, fill="black")
        for line, pictures in enumerate((before, after)):
            for i, picture in enumerate(pictures):
                enlarged = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (i * side, top + head + line * side))
    sheet.save(path)


def _to_float(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, S, S, 3) -> float (n, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _to_bytes(frames: Tensor) -> np.ndarray:
    """The inverse of `_to_float`, rounded and clamped."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).byte().cpu().numpy()
