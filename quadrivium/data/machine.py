"""Chain-reaction machines: two pieces, one device, an optional finish; simulated by Chipmunk, drawn by Pillow.

    Kind         what a piece is: a name, a look, hidden physics
    MachineSpec  which pieces meet in which device, and the small accidents of placing
    run          MachineSpec -> Scene: what happened (read off the simulation) and, if wanted, the frames

Units: the picture is 64 x 64 units whatever its size in pixels, y points up, time is in seconds of the simulation.
Nothing that happens is scripted. A device only sets the stage; the outcome is read from positions and collisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pymunk
from PIL import Image, ImageDraw

UNITS = 64.0  # the picture's side
RADIUS = 6.0  # of every piece: three cells of a 16 x 16 code grid, so that a look survives coding
# A machine opens with its pieces in the middle of squares of this side. A model that reads frames in patches then meets a kind's
# look in one patch; at any place, it has to learn the look once for every place within a patch.
CELL = 16.0
FLOOR = CELL / 2 - RADIUS  # the ground's height: what stands on it is in the middle of the lowest square
GRAVITY = 150.0
SPAN = 3.0  # seconds from the first frame to the last
STEP = 1 / 180
SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (246, 209, 60),
    "green": (60, 160, 75),
    "blue": (45, 105, 205),
    "purple": (130, 75, 175),
    "pink": (245, 145, 185),
    "black": (55, 55, 62),
}
PATTERNS = ("plain", "banded", "spotted", "halved", "quartered")
OUTLINES = ("round", "square", "diamond", "triangle")
LOOKS = len(COLOURS) * len(PATTERNS) * len(OUTLINES)

# Device -> its outcomes, in a fixed order: an outcome's index means the same thing for all three readings of a device
# ("the first piece wins", "neither", "the second piece wins") wherever the device compares the two pieces.
DEVICES: dict[str, tuple[str, str, str]] = {
    "ramp": ("push", "stop", "bounce"),
    "seesaw": ("first", "level", "second"),
    "catapult": ("over", "short", "stay"),
    "dominoes": ("knock", "hold", "stand"),
    "table": ("break", "sink", "bear"),
}
# Device -> what may be set up after it. "" is a machine of one link.
FINISHES: dict[str, tuple[str, ...]] = {
    "ramp": ("", "bell", "bucket", "domino bell"),
    "seesaw": ("", "bell"),
    "catapult": ("", "bell", "bucket"),
    "dominoes": ("", "bell", "bucket"),
    "table": ("", "bell"),
}
LINKS = {"": 1, "bell": 2, "bucket": 2, "domino bell": 3}

SKY = (250, 244, 230)
GROUND = (201, 180, 150)
WOOD = (168, 112, 66)
DARK_WOOD = (120, 76, 45)
TEAL = (76, 142, 148)
STEEL = (128, 138, 150)
GOLD = (226, 178, 52)
DARK_GOLD = (150, 108, 30)


@dataclass(frozen=True)
class Kind:
    """A kind of piece. Everything about it is drawn anew for every seed."""

    name: str  # Latin letters, a common noun: "a zopeka"
    kana: str  # the same name in katakana
    colour: str
    pattern: str
    outline: str
    mass: float
    bounce: float  # restitution; Chipmunk multiplies those of the two shapes that touch
    friction: float  # likewise
    level: int  # 0, 1, 2: which third of the masses this kind belongs to
    group: str  # "read", "seen", "both" or "neither"


@dataclass(frozen=True)
class MachineSpec:
    """One machine before it runs. ``jitter``: three numbers in [-1, 1] that move things a little."""

    device: str
    first: int  # kind that acts: let go on the ramp, dropped on the lever, ...
    second: int  # kind that is met
    finish: str = ""
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mirror: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened at ``time`` seconds: ``who`` and ``whom`` are "first", "second", or a part's name."""

    time: float
    what: str  # "strike", "fall", "ring", "land", "snap"
    who: str
    whom: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """What a machine did. ``frames``: uint8 (F, S, S, 3), empty (0, S, S, 3) where no picture was asked for."""

    spec: MachineSpec
    outcome: str
    events: tuple[Event, ...]
    rang: bool  # the bell, if there is one
    caught: bool  # the second piece lies in the bucket, if there is one
    frames: np.ndarray = field(repr=False)


def _slope(x0: float, y0: float, x1: float, y1: float, bend: float) -> list[tuple[float, float]]:
    """A straight slide from (x0, y0) down to (x1, y1) with a rounded foot of half-length ``bend``, level at its end."""
    knee = x1 - bend  # where the straight slope would meet the floor
    length = math.hypot(knee - x0, y0 - y1)
    start = (knee + (x0 - knee) * bend / length, y1 + (y0 - y1) * bend / length)
    points = [(x0, y0)]
    for k in range(9):
        t = k / 8  # quadratic Bezier curve from the slope to the floor around the knee
        points.append(((1 - t) ** 2 * start[0] + 2 * t * (1 - t) * knee + t * t * x1, y1 + (1 - t) ** 2 * (start[1] - y1)))
    return points


def _rect(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class _Machine:
    """The stage: a Chipmunk space, what to draw, and what was noticed."""

    def __init__(self, spec: MachineSpec, kinds: Sequence[Kind]) -> None:
        self.spec = spec
        self.kinds = kinds
        self.space = pymunk.Space()
        self.space.gravity = (0, -GRAVITY)
        self.space.iterations = 20
        self.time = 0.0
        self.events: list[Event] = []
        self.noticed: set[tuple[str, str, str]] = set()
        self.polygons: list[tuple[pymunk.Body | None, list[tuple[float, float]], tuple[int, int, int]]] = []
        self.late: list[tuple[pymunk.Body | None, list[tuple[float, float]], tuple[int, int, int]]] = []  # drawn over pieces
        self.spring: tuple[float, float, pymunk.Body] | None = None
        self.bell: tuple[float, float] | None = None
        self.rang_at: float | None = None
        self.each_step: list[Callable[[], None]] = []
        self.names: dict[pymunk.Shape, str] = {}
        self.pieces: dict[str, pymunk.Body] = {}
        self.struck_x: float | None = None  # where the first piece was when it struck the second
        self.space.on_collision(None, None, begin=self._begin)

    # ---- building -------------------------------------------------------------------------------------------------

    def static(
        self,
        points: list[tuple[float, float]],
        colour: tuple[int, int, int] | None,
        friction: float = 1.0,
        bounce: float = 0.2,
        solid: bool = True,
        name: str = "",
    ) -> None:
        """A fixed convex polygon."""
        if solid:
            shape = pymunk.Poly(self.space.static_body, points)
            shape.friction, shape.elasticity = friction, bounce
            self.space.add(shape)
            self.names[shape] = name
        if colour is not None:
            self.polygons.append((None, points, colour))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int] | None, **options) -> None:
        self.static(_rect(x0, y0, x1, y1), colour, **options)

    def ground(self, friction: float = 1.7) -> None:
        self.box(-20, -18, 84, FLOOR, GROUND, friction=friction, name="ground")
        for x in (-21.5, 64.0):  # nothing leaves the picture
            self.box(x, FLOOR, x + 20, 100, None, bounce=0.0, friction=0.2, name="edge")

    def piece(self, role: str, x: float, y: float) -> pymunk.Body:
        """A piece standing with its centre at (x, y). It never spins: a spun pattern is a different pattern."""
        kind = self.kinds[self.spec.first if role == "first" else self.spec.second]
        body = pymunk.Body(kind.mass, math.inf)
        body.position = (x, y)
        shape = pymunk.Circle(body, RADIUS)
        shape.friction, shape.elasticity = kind.friction, kind.bounce
        self.space.add(body, shape)
        self.names[shape] = role
        self.pieces[role] = body
        return body

    def part(
        self,
        name: str,
        mass: float,
        position: tuple[float, float],
        outlines: list[list[tuple[float, float]]],
        colour: tuple[int, int, int],
        friction: float = 1.0,
        bounce: float = 0.1,
        spins: bool = True,
    ) -> pymunk.Body:
        """A moving part made of convex polygons around ``position``."""
        moment = sum(pymunk.moment_for_poly(mass / len(outlines), points) for points in outlines) if spins else math.inf
        body = pymunk.Body(mass, moment)
        body.position = position
        self.space.add(body)
        for points in outlines:
            shape = pymunk.Poly(body, points)
            shape.friction, shape.elasticity = friction, bounce
            self.space.add(shape)
            self.names[shape] = name
            self.polygons.append((body, points, colour))
        return body

    def slide(self, x0: float, y0: float, x1: float, y1: float, bend: float) -> None:
        """A ramp from (x0, y0) down to (x1, y1) with a foot of half-length ``bend``, filled below."""
        curve = _slope(x0, y0, x1, y1, bend)
        track = [(x0 - 20, y0), *curve]
        pieces = [pymunk.Segment(self.space.static_body, a, b, 0.0) for a, b in pairwise(track)]
        for k, shape in enumerate(pieces):
            # Neighbours make Chipmunk ignore the joints, which otherwise trip what slides over them.
            shape.set_neighbors(track[max(k - 1, 0)], track[min(k + 2, len(track) - 1)])
            shape.friction, shape.elasticity = 0.6, 0.0
            self.names[shape] = "ramp"
        self.space.add(*pieces)
        self.polygons.append((None, [(-1, y0), *curve, (x1, y1), (-1, y1)], WOOD))

    def shelf(self, edge: float, floor: float, friction: float = 1.7) -> None:
        """A shelf from the picture's side to ``edge``, its top at ``floor``."""
        self.box(-20, floor - 3, edge, floor, WOOD, friction=friction, name="shelf")
        for x in (6.0, edge - 7):
            self.box(x - 1.2, FLOOR, x + 1.2, floor - 3, DARK_WOOD, solid=False)

    def add_bell(self, x: float, base: float) -> None:
        """A bell standing on ``base``, 7 units high. It rings when anything strikes it."""
        self.static(
            [(x - 4, base), (x + 4, base), (x + 2, base + 7), (x - 2, base + 7)], None, bounce=0.0, friction=0.2, name="bell"
        )
        self.bell = (x, base)

    def add_bucket(self, x0: float, x1: float, y0: float, height: float) -> None:
        """An open bucket standing at y0 with inner width x0..x1."""
        self.box(x0 - 1.5, y0, x0, y0 + height, None, bounce=0.0, friction=0.3, name="bucket side")
        self.box(x1, y0, x1 + 1.5, y0 + height, None, bounce=0.0, friction=0.3, name="bucket side")
        self.box(x0, y0, x1, y0 + 1, None, bounce=0.0, name="bucket")
        body = [(x0 - 1.5, y0 + height), (x0 - 0.2, y0), (x1 + 0.2, y0), (x1 + 1.5, y0 + height)]
        self.polygons.append((None, [(x0, y0 + height), (x0 + 0.4, y0), (x1 - 0.4, y0), (x1, y0 + height)], (214, 208, 196)))
        rim = [(x0 - 1.5, y0 + height), (x0 - 1.2, y0 + height - 2), (x1 + 1.2, y0 + height - 2), (x1 + 1.5, y0 + height)]
        self.late += [(None, [(x, min(y, y0 + height * 0.62)) for x, y in body], STEEL)]
        self.late += [(None, [(x, y - height * 0.38 + 1.0) for x, y in rim], (98, 108, 120))]

    # ---- noticing -------------------------------------------------------------------------------------------------

    def note(self, what: str, who: str, whom: str = "") -> None:
        if (what, who, whom) not in self.noticed:
            self.noticed.add((what, who, whom))
            self.events.append(Event(round(self.time, 3), what, who, whom))

    def _begin(self, arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        a, b = (self.names.get(shape, "") for shape in arbiter.shapes)
        pair = {a, b}
        if pair == {"first", "second"}:
            if self.struck_x is None:
                self.struck_x = self.pieces["first"].position.x
            self.note("strike", "first", "second")
        elif "bell" in pair:
            if self.rang_at is None:
                self.rang_at = self.time
            self.note("ring", "bell", a if b == "bell" else b)
        else:
            for who, whom in ((a, b), (b, a)):
                if who in ("first", "second") and whom in ("bucket", "ground", "plank", "domino 1", "domino", "wall", "table"):
                    if whom in ("bucket", "ground") and self.time < 0.05:
                        continue
                    self.note("land" if whom in ("bucket", "ground", "plank", "table") else "strike", who, whom)
                elif who.startswith("domino") and whom == "second":
                    self.note("strike", who, whom)

    # ---- running --------------------------------------------------------------------------------------------------

    def advance(self, until: float) -> None:
        while self.time < until - STEP / 2:
            for act in self.each_step:
                act()
            self.space.step(STEP)
            self.time += STEP


def _ramp(m: _Machine) -> Callable[[], str]:
    """The first piece slides down onto the second, which stands on the flat."""
    j = m.spec.jitter
    floor = FLOOR + CELL if m.spec.finish == "bucket" else FLOOR
    m.ground(1.22)
    m.slide(8, floor + CELL, 20.7, floor, 5.7)
    a = m.piece("first", 8, floor + CELL + RADIUS)
    m.piece("second", 40, floor + RADIUS)
    a.velocity = (14.8 + j[0], 0)  # a nudge over the edge, the same for every kind
    if m.spec.finish == "":
        m.box(61.5 + j[1], FLOOR, 64, FLOOR + 9, DARK_WOOD, bounce=0.0, name="wall")
    elif m.spec.finish == "bell":
        m.add_bell(59.5, FLOOR)
    elif m.spec.finish == "bucket":
        m.shelf(47, floor, 1.22)
        m.add_bucket(47.8, 62.2, FLOOR, 10)
    else:
        m.part("domino", 0.4, (53.0, FLOOR + 6.5), [_rect(-1.4, -6.5, 1.4, 6.5)], TEAL)
        m.add_bell(59.5, FLOOR)

    def read() -> str:
        if m.struck_x is None:
            return "none"
        moved = a.position.x - m.struck_x
        return "push" if moved > 1.8 else "bounce" if moved < -1.8 else "stop"

    return read


def _seesaw(m: _Machine) -> Callable[[], str]:
    """Both pieces are let go at the same moment at the two ends of a plank on a pivot."""
    j = m.spec.jitter
    m.ground()
    y = FLOOR + CELL - 1
    foot = 6 + j[0]
    m.static([(32 - foot, FLOOR), (32 + foot, FLOOR), (32, y)], DARK_WOOD, solid=False)
    stops = [_rect(x - 0.6, 1, x + 0.6, 3.5) for x in (-30.4, -17, 17, 30.4)]
    plank = m.part("plank", 3.0, (32, y), [_rect(-31, -1, 31, 1), *stops], WOOD, friction=3.0)
    limit = 0.4
    m.space.add(pymunk.PivotJoint(m.space.static_body, plank, (32, y)))
    m.space.add(pymunk.RotaryLimitJoint(m.space.static_body, plank, -limit, limit))
    # A stiff hinge: it centres the plank under nearly equal loads and slows the fall enough to be watched.
    m.space.add(pymunk.DampedRotarySpring(m.space.static_body, plank, 0.0, 8500.0, 13500.0))
    m.piece("first", 8, y + 1 + RADIUS)
    m.piece("second", 56, y + 1 + RADIUS)
    if m.spec.finish == "bell":
        m.add_bell(55.0, FLOOR)

    def read() -> str:
        return "first" if plank.angle > 0.1 else "second" if plank.angle < -0.1 else "level"

    return read


def _catapult(m: _Machine) -> Callable[[], str]:
    """The first piece is dropped on the high arm of a lever; the second sits in the low scoop, before a fence."""
    j = m.spec.jitter
    m.ground()
    m.box(-20, FLOOR, 0, 64, None, bounce=0.0, friction=0.2, name="post")
    pivot = (16.2, FLOOR + 11.6)
    m.static([(13.5, FLOOR), (18.9, FLOOR), (17.2, pivot[1] + 0.6), (15.2, pivot[1] + 0.6)], DARK_WOOD, solid=False)
    arm = _rect(-14.6, -0.9, 0.0, 0.9)
    leg = [(-1.0, 0.0), (0.2, -12.8), (2.2, -12.8), (1.0, 0.8)]
    scoop = _rect(0.2, -13.0, 13.4, -11.6)
    lever = m.part("plank", 0.8, pivot, [arm, leg, scoop], WOOD, friction=1.0, bounce=0.1)
    m.space.add(pymunk.PivotJoint(m.space.static_body, lever, pivot))
    m.space.add(pymunk.RotaryLimitJoint(m.space.static_body, lever, 0.0, 0.4))
    for shape in (*lever.shapes, *(s for s, name in m.names.items() if name == "ground")):
        shape.filter = pymunk.ShapeFilter(group=1)  # the scoop lies in the ground
    b = m.piece("second", 24, FLOOR + RADIUS)
    m.piece("first", 8, 56)
    fence = 43.5 + j[0]
    m.box(fence - 1.2, FLOOR, fence + 1.2, FLOOR + 6, DARK_WOOD, bounce=0.0, friction=0.2, name="wall")
    if m.spec.finish == "bell":
        m.add_bell(58, FLOOR)
    elif m.spec.finish == "bucket":
        m.add_bucket(50.6, 62.6, FLOOR, 6)

    def read() -> str:
        x = b.position.x
        return "over" if x > fence else "short" if x > 26.5 else "stay"

    return read


def _dominoes(m: _Machine) -> Callable[[], str]:
    """The first piece slides into a row of thick dominoes; past the row the second stands at the edge of a shelf."""
    j = m.spec.jitter
    floor = FLOOR + CELL
    m.ground()
    m.shelf(47.4, floor, 0.65)
    m.slide(8, floor + CELL, 15.17, floor, 4.14)
    a = m.piece("first", 8, floor + CELL + RADIUS)
    a.velocity = (10.5, 0)
    rows = [
        m.part("domino 1" if k == 0 else "domino", 2.52, (x, floor + 7.5), [_rect(-1.67, -7.5, 1.67, 7.5)], TEAL, friction=1.5)
        for k, x in enumerate((23.71 + 0.15 * j[0], 30.06 + 0.15 * j[0]))
    ]
    b = m.piece("second", 40, floor + RADIUS)
    if m.spec.finish == "bell":
        m.add_bell(58, FLOOR)
    elif m.spec.finish == "bucket":
        m.add_bucket(49, 64, FLOOR, 9)

    def read() -> str:
        if abs(rows[0].angle) < 0.2:
            return "stand"
        return "knock" if b.position.y < floor else "hold"

    return read


def _table(m: _Machine) -> Callable[[], str]:
    """The first piece is dropped beside the second on a table that stands on one spring."""
    j = m.spec.jitter
    m.ground()
    y = FLOOR + 2 * CELL - 1.2
    boards = [_rect(-16, -1.2, 16, 1.2), _rect(-16, 1.2, -14.6, 3.5), _rect(14.6, 1.2, 16, 3.5)]
    top = m.part("table", 1.0, (32 + j[0], y), boards, WOOD, bounce=0.0, spins=False)
    m.space.add(pymunk.GrooveJoint(m.space.static_body, top, (32 + j[0], FLOOR), (32 + j[0], y), (0, 0)))
    m.piece("second", 24, y + 1.2 + RADIUS)
    m.piece("first", 40, 56)
    if m.spec.finish == "bell":
        m.add_bell(43, FLOOR - 3.5)
    m.spring = (32.0 + j[0], FLOOR, top)

    def hold() -> None:
        """A spring under tension that gives only above a threshold, and snaps when squeezed too far."""
        if m.spring is None:
            return
        squeeze = y - top.position.y
        if squeeze > 13.5:
            m.spring = None
            m.note("snap", "spring")
            return
        lift = 5.6 * GRAVITY + 0.36 * GRAVITY * squeeze
        top.apply_force_at_local_point((0, lift - 60.0 * top.velocity.y), (0, 0))

    m.each_step.append(hold)

    def read() -> str:
        return "break" if m.spring is None else "sink" if y - top.position.y > 1.6 else "bear"

    return read


_STAGE: dict[str, Callable[[_Machine], Callable[[], str]]] = {
    "ramp": _ramp,
    "seesaw": _seesaw,
    "catapult": _catapult,
    "dominoes": _dominoes,
    "table": _table,
}


def run(spec: MachineSpec, kinds: Sequence[Kind], frames: int = 8, size: int = 64, draw: bool = True) -> Scene:
    """Run one machine. ``frames`` moments, evenly spread over SPAN seconds, are drawn; the first is before anything moves."""
    machine = _Machine(spec, kinds)
    read = _STAGE[spec.device](machine)
    pictures = np.zeros((frames if draw else 0, size, size, 3), np.uint8)
    for k in range(frames):
        machine.advance(SPAN * k / max(frames - 1, 1))
        if draw:
            pictures[k] = np.asarray(_draw(machine, size))
    outcome = read()
    caught = ("land", "second", "bucket") in machine.noticed
    return Scene(spec, outcome, tuple(machine.events), machine.rang_at is not None, caught, pictures)


def opening(spec: MachineSpec, kinds: Sequence[Kind], size: int = 64) -> np.ndarray:
    """The first frame only, before anything moves. uint8 (S, S, 3)."""
    machine = _Machine(spec, kinds)
    _STAGE[spec.device](machine)
    return np.asarray(_draw(machine, size))


def portrait(shown: Sequence[tuple[Kind, float, float]], size: int = 64) -> np.ndarray:
    """Pieces (kind, x, height above the ground) and nothing else. uint8 (S, S, 3)."""
    canvas = _Canvas(size, False)
    canvas.polygon([(-1, -1), (65, -1), (65, FLOOR), (-1, FLOOR)], GROUND)
    for kind, x, height in shown:
        canvas.piece(kind, x, FLOOR + RADIUS + height, 0.0)
    return np.asarray(canvas.finish())


# ---- drawing ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _sprite(colour: str, pattern: str, outline: str, scale: int, degrees: int) -> Image.Image:
    """A piece as RGBA, ``scale`` pixels a unit, turned anticlockwise; drawn at twice that and halved for clean edges."""
    k = scale * 2
    side = int(16 * k)
    c = side / 2
    r = RADIUS * k
    body = COLOURS[colour]
    ink = tuple(int(v * 0.55) for v in body)
    pale = (255, 250, 240) if colour != "yellow" else (120, 72, 20)

    def shape(radius: float) -> list[tuple[float, float]] | None:
        if outline == "round":
            return None
        if outline == "square":
            h = radius * 0.93
            return [(c - h, c - h), (c + h, c - h), (c + h, c + r - (r - radius)), (c - h, c + r - (r - radius))]
        if outline == "diamond":
            h = radius * 1.16
            return [(c, c - h), (c + h, c - (h - radius) / 2), (c, c + radius), (c - h, c - (h - radius) / 2)]
        h = radius * 1.18
        return [(c, c - h * 1.12), (c + h, c + radius), (c - h, c + radius)]

    def fill(draw: ImageDraw.ImageDraw, radius: float, colour_: tuple[int, ...] | int) -> None:
        points = shape(radius)
        if points is None:
            draw.ellipse((c - radius, c - radius, c + radius, c + radius), fill=colour_)
        else:
            draw.polygon(points, fill=colour_)

    picture = Image.new("RGBA", (side, side), (*ink, 0))
    fill(ImageDraw.Draw(picture), r, (*ink, 255))
    inside = Image.new("L", (side, side), 0)
    fill(ImageDraw.Draw(inside), r - 0.9 * k, 255)
    paint = Image.new("RGBA", (side, side), (*body, 255))
    draw = ImageDraw.Draw(paint)
    mark = (*pale, 255)
    low = c + 1.4 * k if outline == "triangle" else c  # the middle of the area
    if pattern == "banded":
        draw.rectangle((0, low - 1.6 * k, side, low + 1.6 * k), fill=mark)
    elif pattern == "spotted":
        w = 2.3 * k if outline != "triangle" else 1.9 * k
        draw.ellipse((c - w, low - w, c + w, low + w), fill=mark)
    elif pattern == "halved":
        draw.rectangle((c, 0, side, side), fill=mark)
    elif pattern == "quartered":
        draw.rectangle((0, 0, c, low), fill=mark)
        draw.rectangle((c, low, side, side), fill=mark)
    picture.paste(paint, (0, 0), inside)
    if degrees:
        picture = picture.rotate(degrees, Image.Resampling.BICUBIC)
    return picture.reduce(2)


class _Canvas:
    """A supersampled picture in world units; mirrored left to right if asked."""

    def __init__(self, size: int, mirror: bool) -> None:
        self.size, self.mirror = size, mirror
        self.side = size * SUPERSAMPLING
        self.unit = self.side / UNITS
        self.image = Image.new("RGB", (self.side, self.side), SKY)
        self.draw = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return ((UNITS - x if self.mirror else x) * self.unit, (UNITS - y) * self.unit)

    def polygon(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=colour)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        self.draw.line([self.at(x, y) for x, y in points], fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        px, py = self.at(x, y)
        r = radius * self.unit
        self.draw.ellipse((px - r, py - r, px + r, py + r), fill=colour)

    def piece(self, kind: Kind, x: float, y: float, angle: float) -> None:
        degrees = 5 * round(math.degrees(angle) / 5)
        scale = max(1, round(self.unit))
        sprite = _sprite(kind.colour, kind.pattern, kind.outline, scale, -degrees if self.mirror else degrees)
        if scale != self.unit:  # sizes that are no multiple of 16
            side = round(16 * self.unit)
            sprite = sprite.resize((side, side), Image.Resampling.BILINEAR)
        px, py = self.at(x, y)
        self.image.paste(sprite, (round(px - sprite.width / 2), round(py - sprite.height / 2)), sprite)

    def finish(self) -> Image.Image:
        return self.image.reduce(SUPERSAMPLING)


def _lean(body: pymunk.Body) -> float:
    """Angle of the surface that carries a piece, 0 in the air: pieces do not spin, but they lie on what they slide over."""
    best = [0.0, 0.75]  # angle, how upright its normal is

    def look(arbiter: pymunk.Arbiter) -> None:
        shapes = arbiter.shapes
        if all(isinstance(shape, pymunk.Circle) for shape in shapes):
            return
        n = arbiter.contact_point_set.normal
        n = n if n.y > 0 else -n
        if n.y > best[1]:
            best[0], best[1] = math.atan2(-n.x, n.y), n.y

    body.each_arbiter(look)
    return best[0]


def _draw(m: _Machine, size: int) -> Image.Image:
    canvas = _Canvas(size, m.spec.mirror)

    def put(body: pymunk.Body | None, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        canvas.polygon(points if body is None else [(w.x, w.y) for w in map(body.local_to_world, points)], colour)

    if m.spring is not None:
        x, y, top = m.spring
        height = top.position.y - y
        zigzag = [(x + (4 if k % 2 else -4), y + height * k / 8) for k in range(9)]
        canvas.line(zigzag, STEEL, 1.3)
    for body, points, colour in m.polygons:
        put(body, points, colour)
    if m.bell is not None:
        x, y = m.bell
        canvas.polygon([(x - 4.2, y), (x - 4.2, y + 1.2), (x + 4.2, y + 1.2), (x + 4.2, y)], DARK_GOLD)
        canvas.polygon(
            [(x - 3.6, y + 1), (x - 2.6, y + 3), (x - 2.2, y + 5.5), (x + 2.2, y + 5.5), (x + 2.6, y + 3), (x + 3.6, y + 1)],
            GOLD,
        )
        canvas.disc(x, y + 5.2, 2.2, GOLD)
        canvas.disc(x, y + 7.4, 0.9, DARK_GOLD)
        if m.rang_at is not None and m.time - m.rang_at < 0.9:
            for dx, dy in ((-6, 6), (0, 8.5), (6, 6)):
                canvas.line([(x + dx * 0.8, y + 2.5 + dy * 0.8), (x + dx * 1.3, y + 2.5 + dy * 1.3)], (224, 90, 60), 1.3)
    for role in ("second", "first"):
        body = m.pieces[role]
        kind = m.kinds[m.spec.first if role == "first" else m.spec.second]
        canvas.piece(kind, body.position.x, body.position.y, _lean(body))
    for body, points, colour in m.late:
        put(body, points, colour)
    return canvas.finish()
