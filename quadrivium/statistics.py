"""Statistics of experiments over seeds: paired intervals, what could have been detected, exchange rates, the verdict.

The seed is the unit of every claim about training: two arms are compared by their differences seed by seed, with a
t-interval (five seeds resampled by percentiles cover too little). Errors over items of one run, clustered by group, are
`evaluate.ratio`. Costs are in bits, or shares of wrong answers, so less is better, and a gain is the cost of the other arm minus that of this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

LEVEL = 0.95  # of every interval
POWER = 0.8  # at which an effect counts as detectable

# The arms that the verdict compares "four" with, and what a tie with each would mean.
COMPUTE, CAPTION, VISUAL, NONE = "compute or regularisation profit", "caption profit", "visual profit", "none detected"
CONTROLS = {"text-equal": COMPUTE, "captions": CAPTION, "shuffled": COMPUTE, "noise": COMPUTE}


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its t-interval; the half-width of a single value is not known (nan)."""
    x = np.array(list(values), float)
    if len(x) < 2:
        return float(x.mean()), math.nan
    return float(x.mean()), critical(len(x)) * float(x.std(ddof=1)) / math.sqrt(len(x))


def plus_minus(mean: float | None, half: float | None, digits: int) -> str:
    """A mean and its error as text: no error where none is known (one item, one seed), "-" where there is no mean.

    Numbers may come from a file, where what is not finite is None (`data.shards.to_json`).
    """
    if mean is None or math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if half is None or math.isnan(half) else f" ± {half:.{digits}f}")


@cache
def critical(n: int) -> float:
    """Half-width of the interval of ``n`` values, in standard errors."""
    from scipy.special import stdtrit  # the t-distribution; scipy.stats takes a second to import

    return float(stdtrit(n - 1, 0.5 + LEVEL / 2))


@dataclass(frozen=True)
class Contrast:
    """A difference paired by seed: its mean, the ends of its interval, its standard deviation over ``n`` seeds, and the
    two-sided p-value of no difference. What one seed cannot tell is nan."""

    mean: float
    low: float
    high: float
    sd: float
    p: float
    n: int

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0; false where there is none."""
        return self.low > 0

    @property
    def detectable(self) -> float:
        """The smallest true difference that so many seeds, scattering so much, find with `POWER`."""
        return detectable(self.sd, self.n)


def paired(a: Mapping[int, float], b: Mapping[int, float], grain: float = 0.0) -> Contrast:
    """a - b over the seeds that both have. Raises ValueError where they share none.

    ``grain``: the step in which values come, such as 1 of so many questions; 0: none. What lies between two steps is not known, so their
    standard deviation counts as at least that of the rounding of a difference, grain / sqrt(6).
    """
    from scipy.special import stdtr  # the t-distribution

    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise ValueError("two arms without a common seed cannot be compared")
    x = np.array([a[s] - b[s] for s in seeds], float)
    mean = float(x.mean())
    if len(x) < 2:
        return Contrast(mean, math.nan, math.nan, math.nan, math.nan, 1)
    sd = max(float(x.std(ddof=1)), grain / math.sqrt(6))
    half = critical(len(x)) * sd / math.sqrt(len(x))
    p = 2 * float(stdtr(len(x) - 1, -abs(mean) / (sd / math.sqrt(len(x))))) if sd else float(mean == 0)
    return Contrast(mean, mean - half, mean + half, sd, p, len(x))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted so that the chance of one false alarm among all is what it says (Holm 1979); nan stays nan."""
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, worst = dict(p), 0.0
    for rank, (value, name) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        adjusted[name] = worst
    return adjusted


def power(effect: float, sd: float, n: int) -> float:
    """How often an interval of ``n`` paired seeds whose differences scatter by ``sd`` lies on the side of a true ``effect``."""
    from scipy.stats import nct

    if n < 2 or not sd > 0:
        return math.nan
    return float(nct.sf(critical(n), n - 1, abs(effect) / sd * math.sqrt(n)))


def detectable(sd: float, n: int) -> float:
    """The effect for which `power` is `POWER`, in the unit of ``sd``; nan for a single seed."""
    return sd * _standard(n) if n > 1 else math.nan


@cache
def _standard(n: int) -> float:
    from scipy.optimize import brentq

    return float(brentq(lambda effect: power(effect, 1.0, n) - POWER, 1e-6, 1e3))


# ---- what a frame is worth in text --------------------------------------------------------------------------------

_EXPONENTS = np.geomspace(0.02, 4.0, 1600)


@dataclass(frozen=True)
class Curve:
    """L(D) = floor + scale (D / unit)^-exponent, fitted to costs on a ladder of unique text (Hernandez et al. 2021)."""

    floor: float
    scale: float
    exponent: float
    unit: float

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Cost at amounts of text."""
        return self.floor + self.scale * (np.asarray(tokens, float) / self.unit) ** -self.exponent


def fit_ladder(tokens: np.ndarray, costs: np.ndarray) -> Curve:
    """Least squares with floor and scale not negative. ``tokens`` (R,) of at least 3 different rungs, ``costs`` (R,)."""
    tokens, costs = np.asarray(tokens, float), np.asarray(costs, float)
    if len(np.unique(tokens)) < 3:
        raise ValueError("a curve of three unknowns needs at least three rungs")
    floor, scale, exponent = (float(x[0]) for x in _fit(tokens, costs[None]))
    return Curve(floor, scale, exponent, _unit(tokens))


def _unit(tokens: np.ndarray) -> float:
    return float(np.exp(np.log(tokens).mean()))


def _fit(tokens: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor, scale and exponent (M,) of M ladders (M, R) at once: for every exponent of a grid the rest is linear."""
    u = (tokens / _unit(tokens)) ** -_EXPONENTS[:, None]  # (G, R)
    n, su, suu = u.shape[1], u.sum(1), (u**2).sum(1)
    sl, sll, sul = costs.sum(1)[:, None], (costs**2).sum(1)[:, None], costs @ u.T  # (M, 1), (M, 1), (M, G)
    scale = (n * sul - su * sl) / (n * suu - su**2)
    floor = (sl - scale * su) / n
    flat, bare = scale < 1e-9, floor < 0  # less than rounding is no fall
    scale = np.where(flat, 0.0, np.where(bare, sul / suu, scale))
    floor = np.where(flat, sl / n, np.where(bare, 0.0, floor))
    error = sll - 2 * (floor * sl + scale * sul) + n * floor**2 + 2 * floor * scale * su + scale**2 * suu
    best = error.argmin(1)
    rows = np.arange(len(costs))
    return floor[rows, best], scale[rows, best], _EXPONENTS[best]


def _invert(tokens: np.ndarray, costs: np.ndarray, target: np.ndarray, flat: float) -> np.ndarray:
    """The amount of text (M,) at which each ladder (M, R) reaches its target (M,), cut off at the ends of the ladder; ``flat`` where
    the ladder does not fall, which tells nothing."""
    floor, scale, exponent = _fit(tokens, costs)
    rest = (target - floor) / np.maximum(scale, 1e-300)
    with np.errstate(over="ignore", divide="ignore"):
        reached = _unit(tokens) * np.where(rest > 0, rest, np.nan) ** (-1 / exponent)
    # Below the floor no amount of text is enough: the upper end, beyond which nothing was measured.
    return np.where(scale > 0, np.clip(np.where(rest > 0, reached, np.inf), tokens.min(), tokens.max()), flat)


def effective_text(tokens: np.ndarray, costs: np.ndarray, target: np.ndarray, draws: int = 2000) -> dict[str, Any]:
    """How much text alone would reach the costs ``target`` (S,) of S seeds, off their ladders: ``costs`` (S, R) at ``tokens`` (R,).

    The interval is a parametric bootstrap over seeds: means of the seeds' (ladder, target) vectors are drawn from their
    multivariate t-distribution, which gives the exact t-interval wherever the answer is linear in them, and the curve is
    fitted again each time. Nothing is extrapolated: a number at an end of the ladder is only a bound, and says so. A ladder that
    does not fall is one on which more text saves nothing; a drawn one that does not could stand for any amount.

    Raises ValueError where the mean ladder does not fall. Returns ``tokens``, ``low``, ``high`` (nan for one seed), each with ``*_bound`` "", "at least" or "at most"; ``curve``; ``n``.
    """
    tokens, costs, target = np.asarray(tokens, float), np.atleast_2d(np.asarray(costs, float)), np.asarray(target, float)
    curve = fit_ladder(tokens, costs.mean(0))
    if not curve.scale > 0:
        raise ValueError("more text saves nothing on this ladder, so nothing can be expressed in text")
    found: dict[str, Any] = {"n": len(target), "curve": asdict(curve)}
    values = {"tokens": float(_invert(tokens, costs.mean(0)[None], target.mean(keepdims=True), math.nan)[0])}
    if len(target) > 1:
        x = np.concatenate([costs, target[:, None]], axis=1)  # (S, R + 1)
        n, rng = len(x), np.random.default_rng(0)
        spread = rng.standard_normal((draws, n)) @ (x - x.mean(0)) / math.sqrt(n * (n - 1))
        drawn = x.mean(0) + spread / np.sqrt(rng.chisquare(n - 1, (draws, 1)) / (n - 1))
        for name, end, share in (("low", tokens.min(), (1 - LEVEL) / 2), ("high", tokens.max(), (1 + LEVEL) / 2)):
            values[name] = float(np.quantile(_invert(tokens, drawn[:, :-1], drawn[:, -1], end), share))
    else:
        values |= {"low": math.nan, "high": math.nan}
    for name, value in values.items():
        bound = "at least" if value >= tokens.max() else "at most" if value <= tokens.min() else ""
        found |= {name: value, f"{name}_bound": bound}
    return found


def worth(ladder: dict[str, Any]) -> str:
    """What a frame is worth in text, and its interval, with bounds named as such, in words."""
    rate, bounds = ladder["tokens_per_frame"], ladder["effective"]
    value, low, high = (
        " ".join(filter(None, [bounds[f"{k}_bound"], f"{rate[k]:+.2f}"]))
        if rate[k] is not None and not math.isnan(rate[k])
        else ""
        for k in ("tokens", "low", "high")
    )
    return f"a frame is worth {value} ids of text" + (
        f" (95 % interval {low} to {high})" if low and high else " (one seed, no interval)"
    )


# ---- the verdict --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """``words``: one of `VISUAL`, `CAPTION`, `COMPUTE`, `NONE`, or "undecided" with the reason in ``why``."""

    words: str
    why: str
    gains: dict[str, Contrast]  # other arm -> its cost minus that of "four"
    detectable: float  # the largest of what each comparison, taken singly, would have found with `POWER`; all at once need more


def verdict(costs: Mapping[str, Mapping[int, float]], controls: Iterable[str] = tuple(CONTROLS), grain: float = 0.0) -> Verdict:
    """What text gained from seeing. ``costs``: arm -> seed -> bits per byte of held-out text, or the share of wrong answers, which comes in
    steps (``grain`` of `paired`); ``controls``: those that the data allows.

    X *beats* Y: the 95 % interval of cost(Y) - cost(X), paired by seed, lies above 0.
    X ~ four: X beats "text" as "four" does, and "four" does not beat X.

    1. "four" does not beat "text": none detected.
    2. "four" beats every control: visual profit. All must hold at once, so no correction for their number is due.
    3. text-equal ~ four: compute or regularisation profit (before captions, since "captions" has that compute too).
    4. captions ~ four: caption profit (before shuffled and noise, since these read the captions too).
    5. shuffled ~ four or noise ~ four: compute or regularisation profit.
    6. Otherwise something was gained and none of the reasons could be told apart: none detected.
    """
    controls = list(controls)
    missing = [arm for arm in ("text", "four", *controls) if not costs.get(arm)]
    gains = {
        arm: paired(costs[arm], costs["four"], grain)
        for arm in ("text", *controls)
        if costs.get(arm) and costs.get("four") and costs[arm].keys() & costs["four"].keys()
    }
    known = [g.detectable for g in gains.values()]
    least = max(known) if known and not any(map(math.isnan, known)) else math.nan
    if missing:
        return Verdict("undecided", f"not measured yet: {', '.join(missing)}", gains, least)
    shared = [len(costs["text"].keys() & costs[arm].keys()) for arm in controls]
    if len(gains) <= len(controls) or any(g.n < 2 for g in gains.values()) or min(shared, default=2) < 2:
        return Verdict("undecided", "an interval takes at least two seeds of each arm", gains, least)
    if not gains["text"].above:
        worse = [arm for arm in ("text", *controls) if gains[arm].high < 0]
        said = f"all routes are shown to be worse than {', '.join(worse)}" if worse else ""
        return Verdict(NONE, said, gains, least)
    if all(g.above for g in gains.values()):
        return Verdict(VISUAL, "", gains, least)
    for arm in sorted(controls, key=("text-equal", "captions", "shuffled", "noise").index):
        if not gains[arm].above and paired(costs["text"], costs[arm], grain).above:
            return Verdict(CONTROLS[arm], f"all routes are not shown to beat {arm}", gains, least)
    close = ", ".join(arm for arm in controls if not gains[arm].above)
    return Verdict(NONE, f"text alone is beaten, but {close} can be told apart from neither", gains, least)


def partly(rows: dict[str, dict]) -> str:
    """A sentence on rows of which some items have no source to hide; empty where all have one."""
    some = ", ".join(
        f"{name}: {row['without_source_n']} of {row['n']}" for name, row in rows.items() if "without_source_n" in row
    )
    return f"`without` is of items that have a source alone, and not to be held against `held-out` ({some})." if some else ""


def rightly(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> mean and half interval of its right answers, where these are what the verdict is about; else nothing."""
    return found["endpoints"]["tasks"]["own"]["arms"] if found["config"].get("primary") == "questions" else {}
