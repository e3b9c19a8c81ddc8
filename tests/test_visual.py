"""The visual tokenizer: codes are a bijection, folders are checked, measures agree with values worked out by hand."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from quadrivium.checkpoint import checkpoints
from quadrivium.errors import ConfigError, RunError
from quadrivium.train import TrainConfig, fit, make_optimizers
from quadrivium.visual import VisualConfig, VisualTask, VisualTokenizer, picture_sheet, psnr, ssim

TINY = {"width": 8, "encoder_depth": 1, "decoder_depth": 1}


def tiny(seed: int = 0, **options) -> VisualTokenizer:
    torch.manual_seed(seed)
    return VisualTokenizer(VisualConfig(**{"size": 32, **TINY, **options})).eval()


def discs(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Coloured discs on flat ground, uint8 (n, size, size, 3)."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    frames = np.empty((n, size, size, 3), np.uint8)
    for frame in frames:
        frame[:] = draw.integers(180, 256, 3)
        for _ in range(3):
            a, b, r = (*draw.uniform(4, size - 4, 2), draw.uniform(3, size / 5))
            frame[(x - a) ** 2 + (y - b) ** 2 < r * r] = draw.integers(0, 256, 3)
    return frames


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (4, 4, 4, 4, 4), (2, 3)])
def test_every_code_is_one_combination_of_digits(levels):
    t = tiny(levels=levels)
    codes = torch.arange(t.n_codes).view(-1, 1, 1)
    digits = codes[:, None] // t.base % t.levels
    assert t.n_codes == math.prod(levels)
    assert torch.equal((digits * t.base).sum(1), codes)
    assert len(torch.unique(digits.flatten(1), dim=0)) == t.n_codes
    assert bool((digits < t.levels).all())


@pytest.mark.parametrize(("size", "down", "per_side"), [(32, 4, 1), (64, 8, 1), (96, 4, 1), (64, 8, 2), (36, 6, 3)])
def test_any_size_that_the_cells_divide(size, down, per_side):
    t = tiny(size=size, down=down, per_side=per_side)
    frames = discs(3, size)
    codes = t.encode(frames)
    assert codes.shape == (3, t.rows, t.columns) == (3, size // down * per_side, size // down * per_side)
    assert codes.dtype == np.uint16
    assert codes.max() < t.n_codes
    assert t.codes_per_frame == codes[0].size
    assert t.decode(codes).shape == frames.shape
    assert t.decode(codes).dtype == np.uint8
    redrawn, again = t(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1)
    assert redrawn.shape == (3, 3, size, size)
    assert np.array_equal(again.numpy(), codes)


def test_the_decoder_of_forward_and_of_decode_are_one():
    t = tiny(size=64, down=8, per_side=2)
    frames = discs(4, 64)
    redrawn, codes = t(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1)
    expected = ((redrawn.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy()
    off = np.abs(expected.astype(int) - t.decode(codes.numpy()).astype(int))
    assert off.max() <= 1  # a value on the edge of rounding may fall either way


def test_codes_do_not_depend_on_the_batch():
    t, frames = tiny(), discs(70)
    together, alone = t.encode(frames, batch=64), t.encode(frames, batch=1)
    # Sums of floats in another order can move a number that lies within 1e-6 of the middle between two levels: of
    # 70 * 64 * 4 numbers with steps of at least 1/7, about 0.1 are expected to.
    assert (together != alone).mean() < 1e-3
    assert np.array_equal(together, t.encode(frames, batch=64))


def test_gradient_reaches_every_weight_and_falls_only_where_told():
    t = tiny().train()
    task = VisualTask(t, discs(40), np.zeros(40, int), np.arange(40) < 8, seed=3, batch_size=8)
    for _ in range(2):  # residual paths start at zero: their inner weights are reached from the second step on
        loss, log = task.loss(task.batch(0))
        t.zero_grad()
        loss.backward()
        torch.optim.SGD(t.parameters(), 1e-2).step()
    missing = [name for name, p in t.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing
    assert log.keys() == {"psnr"}


def test_batches_are_a_function_of_seed_and_step_and_never_held_out():
    numbers = np.arange(60, dtype=np.uint8)
    frames = np.broadcast_to(numbers[:, None, None, None], (60, 32, 32, 3))  # a frame's value is its index
    source, held = np.arange(60) % 3, np.arange(60) < 15
    tasks = [VisualTask(tiny(), frames, source, held, seed=s, batch_size=16) for s in (1, 1, 2)]
    a, b, c = ([t.batch(step) for step in range(30)] for t in tasks)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(a[7], tasks[0].batch(7))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    seen = {round(float((v + 1) * 127.5)) for x in a for v in x[:, 0, 0, 0]}
    assert seen <= set(range(15, 60))
    assert len(seen) == 45  # 480 draws of 45 frames: one is missed with odds of 45 * exp(-480 / 45), about 1 in 1,000
    assert tasks[0].positions(a[0])[0] == tasks[0].positions(a[0])[1] > 0


def test_it_learns_flat_drawings():
    t = tiny().train()
    frames = discs(200)
    task = VisualTask(t, frames, np.zeros(200, int), np.arange(200) < 40, seed=0, batch_size=8, names=["discs"])
    before = task.evaluate()
    optimizer = torch.optim.AdamW(t.parameters(), lr=5e-3)
    for step in range(120):
        optimizer.zero_grad()
        task.loss(task.batch(step))[0].backward()
        optimizer.step()
    after = task.evaluate()
    assert t.training  # evaluation leaves the mode as it was
    assert after["discs psnr"] > before["discs psnr"] + 5
    assert after["discs ssim"] > before["discs ssim"]
    assert after["discs used"] >= after["discs perplexity"] >= 1
    assert after["discs bits"] == pytest.approx(math.log2(after["discs perplexity"]) * t.codes_per_frame)
    # A frame drawn from codes is close to one the codes can say: coding it again changes few of them.
    codes = t.encode(frames[:40])
    assert (t.encode(t.decode(codes)) == codes).mean() > 0.3  # chance is about 1 / perplexity


def test_muon_learns_the_kernels_of_blocks_and_resumes_exactly(tmp_path):
    def learn(run, steps: int, save_every: int = 0) -> VisualTokenizer:
        t = tiny().train()
        task = VisualTask(t, discs(40), np.zeros(40, int), np.arange(40) < 8, seed=3, batch_size=4)
        config = TrainConfig(steps=8, optimizer="muon", save_every=save_every)
        assert set(make_optimizers(t, config)) == {"adamw", "muon"}
        batch = task.batch

        def stopping(step: int, part: int = 0, parts: int = 1) -> torch.Tensor:
            if step > steps:
                raise KeyboardInterrupt
            return batch(step, part, parts)

        task.batch = stopping
        with contextlib.suppress(KeyboardInterrupt):
            fit(task, config, run, resume=True, progress=False)
        return t

    whole = learn(tmp_path / "whole", 8).state_dict()
    learn(tmp_path / "cut", 5, save_every=4)
    assert [p.name for p in checkpoints(tmp_path / "cut" / "checkpoints")] == ["step-00000004"]
    again = learn(tmp_path / "cut", 8).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_psnr_and_ssim_of_known_values():
    a = np.full((2, 32, 32, 3), 100, np.uint8)
    b = np.stack([a[0], a[0] + 16])
    assert psnr(a, b)[0] == 100
    assert psnr(a, b)[1] == pytest.approx(20 * math.log10(255 / 16))
    c1 = (0.01 * 255) ** 2  # flat frames have no variance: only the first factor is left
    assert ssim(a, b) == pytest.approx([1, (2 * 100 * 116 + c1) / (100**2 + 116**2 + c1)])
    frames = discs(3)
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 20, frames.shape), 0, 255).astype(np.uint8)
    assert ssim(frames, frames) == pytest.approx([1, 1, 1])
    assert (ssim(frames, noisy) < 0.9).all()
    assert ssim(frames, noisy) == pytest.approx(ssim(noisy, frames))
    assert ssim(a[:0], a[:0]).shape == psnr(a[:0], a[:0]).shape == (0,)


def test_ssim_by_its_definition():
    """One window's place, worked out with weighted means and variances."""
    draw = np.random.default_rng(1)
    a, b = draw.integers(0, 256, (2, 1, 11, 11, 3)).astype(np.uint8)  # exactly one window fits
    g = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / np.outer(g, g).sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for c in range(3):
        x, y = a[0, :, :, c].astype(float), b[0, :, :, c].astype(float)
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b)[0] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("side", [1, 2, 4, 8, 10])
def test_ssim_of_frames_smaller_than_its_window(side):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 3, side, side, 3)).astype(np.uint8)
    assert ssim(a, a) == pytest.approx([1, 1, 1]) and np.isfinite(ssim(a, b)).all() and (ssim(a, b) < 1).all()


def test_saved_and_loaded_is_the_same(tmp_path):
    t, frames = tiny(seed=5, levels=(4, 4, 4)), discs(6)
    t.save(tmp_path / "visual")
    loaded = VisualTokenizer.load(tmp_path / "visual")
    assert loaded.config == t.config
    assert not loaded.training
    codes = t.encode(frames)
    assert np.array_equal(loaded.encode(frames), codes)
    assert np.array_equal(loaded.decode(codes), t.decode(codes))
    assert sorted(p.name for p in (tmp_path / "visual").iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_and_foreign_folders_are_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="not found"):
        VisualTokenizer.load(tmp_path)

    def broken(name: str, file: str, content: bytes | dict | None) -> None:
        folder = tmp_path / name
        tiny().save(folder)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(RunError) as error:
            VisualTokenizer.load(folder)
        assert file in str(error.value)
        assert "\n" not in str(error.value)

    tiny().save(tmp_path / "good")
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    weights = (tmp_path / "good" / "model.safetensors").read_bytes()
    broken("no weights", "model.safetensors", None)
    broken("half the weights", "model.safetensors", weights[: len(weights) // 2])
    broken("no bytes", "model.safetensors", b"")
    broken("other weights", "model.safetensors", b"\x80\x04K\x01." * 9)  # a pickle
    broken("bad json", "config.json", b"{")
    broken("a list", "config.json", b"[1]")
    broken("someone else's", "config.json", {"kind": "something else", "size": 64})
    broken("unknown key", "config.json", {**config, "colour": 3})
    broken("wrong type", "config.json", {**config, "width": "wide"})
    broken("impossible", "config.json", {**config, "size": 33})
    tiny(width=16).save(tmp_path / "wider")
    broken("wider", "model.safetensors", (tmp_path / "wider" / "model.safetensors").read_bytes())


@pytest.mark.parametrize(
    "options",
    [
        {"size": 66},
        {"size": 0},
        {"down": 0},
        {"levels": ()},
        {"levels": (1, 5)},
        {"levels": (256, 256)},
        {"width": 0},
        {"per_side": 0},
        {"decoder_depth": -1},
    ],
)
def test_impossible_shapes(options):
    with pytest.raises(ConfigError, match="visual"):
        VisualTokenizer(VisualConfig(**options))


def test_arrays_of_another_shape_or_range():
    t = tiny()
    with pytest.raises(ConfigError, match="32, 32, 3"):
        t.encode(discs(2, 64))
    with pytest.raises(ConfigError, match="uint8"):
        t.encode(discs(2).astype(np.float32))
    with pytest.raises(ConfigError, match="8, 8"):
        t.decode(np.zeros((2, 4, 4), np.uint16))
    with pytest.raises(ConfigError, match=r"0 \.\. 999"):
        t.decode(np.full((2, 8, 8), 1000, np.uint16))
    assert t.encode(discs(0)).shape == (0, 8, 8)
    assert t.decode(np.zeros((0, 8, 8), np.uint16)).shape == (0, 32, 32, 3)
    with pytest.raises(ConfigError, match="held out"):
        VisualTask(t, discs(2), np.zeros(2, int), np.ones(2, bool), seed=0, batch_size=2)


def test_the_sheet_holds_before_and_after(tmp_path):
    picture_sheet(tiny(), {"discs": discs(3), "more discs": discs(2, seed=1)}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 64
        assert sheet.height > 4 * 64
