"""Where a training step's time goes: kernels of one step on a batch of four routes, longest first, and the share of the machine's peak.

python benchmarks/step.py --width 1024 --layers 28 --batch 256 --compile
"""

import argparse
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from quadrivium.bench import BenchConfig, _attended, _size, _step, four_routes, ours, peak_of, products
from quadrivium.dist import device_of
from quadrivium.model import Batch
from quadrivium.peers import count
from quadrivium.sequence import pack
from quadrivium.train import compile_parts, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--batch", type=int, default=8, help="samples of 117 positions, four routes in turn, the same at every step"
    )
    parser.add_argument("--sharing", default="all", choices=("all", "attention", "none", "cross"))
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=30)
    given = parser.parse_args()
    device = device_of(given.device)
    threads()
    size = _size(BenchConfig(layers=given.layers, batch=given.batch), given.width)
    batch = Batch.of(pack(four_routes(size, np.random.default_rng(0))), device)
    model = ours(size, given.sharing).to(device)
    work = (6.0 * sum(n * i * o for n, i, o in products(model, batch)) + _attended(model, batch)) / 1e12
    if given.compile:
        compile_parts(model)

    def loss() -> torch.Tensor:
        text, codes = model.nats(batch)
        return (text.sum() + codes.sum() / codes.shape[1]) / (len(text) + len(codes))

    step = _step(model, loss, given.precision, device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        step()
    spent = []
    for _ in range(7):
        wait()
        began = time.perf_counter()
        step()
        wait()
        spent.append(time.perf_counter() - began)
    middle = float(np.median(spent))
    peak = peak_of(torch.cuda.get_device_name()) if device == "cuda" else 0.0
    share = f", {work * 1e12 / middle / peak:.1%} of the peak" if peak and given.precision == "bf16" else ""
    held = f", {torch.cuda.max_memory_allocated() / 2**30:.0f} GiB" if device == "cuda" else ""
    print(
        f"{count(model) / 1e6:.1f}M weights, {batch.positions} positions, {middle * 1e3:.1f} ms, {work / middle:.3g} TFLOP/s{share}{held}"
    )
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        step()
        wait()
    spend = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(((getattr(e, spend) / 1e3, e.count, e.key) for e in seen.key_averages()), reverse=True)
    total = sum(row[0] for row in rows)
    print(f"\n{'ms':>9}{'share':>8}{'calls':>7}  kernel ({total:.1f} ms in all)")
    for spent_in, calls, name in rows[: given.rows]:
        print(f"{spent_in:>9.2f}{spent_in / total:>8.1%}{calls:>7}  {name[:110]}")


if __name__ == "__main__":
    main()
