"""Street scenes drawn by the package itself: pictures with pixel-exact labels of the 19 Cityscapes classes.

A scene is a small 3-D world (a straight street seen by a pinhole camera) drawn far to near from one seed. All layout
lives on a canvas of 1024 x 512 units and in metres, so the same seed gives the same scene at every picture size. The
colours overlap on purpose between the classes, and the light, haze, tone curve and noise vary widely from frame to
frame: what tells the classes apart is shape, texture and context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1
"""Raised whenever the same seed draws other pixels."""

SPLITS = {"train": 0, "val": 1, "test": 2}
"""The split is part of the seed, so the splits share no scene."""

CANVAS_W, CANVAS_H = 1024.0, 512.0
VOID = 255
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The Cityscapes labelId of each train id 0..18."""

Colour = tuple[float, float, float]
Point = tuple[float, float]
Polygon = Sequence[Point]

# Weights of (fine grain, leaf blobs, upright streaks, broad stains) per train id; the textures a network may use.
_TEXTURE: tuple[tuple[float, float, float, float], ...] = (
    (0.13, 0.00, 0.00, 0.10),  # road: asphalt grain
    (0.04, 0.00, 0.00, 0.08),  # sidewalk: its joints are drawn
    (0.02, 0.00, 0.00, 0.07),  # building: its windows and courses are drawn
    (0.05, 0.00, 0.02, 0.16),  # wall: stains
    (0.00, 0.00, 0.00, 0.05),  # fence: its bars are drawn
    (0.00, 0.00, 0.00, 0.00),  # pole
    (0.00, 0.00, 0.00, 0.00),  # traffic light
    (0.00, 0.00, 0.00, 0.00),  # traffic sign
    (0.04, 0.30, 0.00, 0.10),  # vegetation: leaves
    (0.05, 0.00, 0.26, 0.14),  # terrain: blades of grass
    (0.00, 0.00, 0.00, 0.00),  # sky: its clouds are drawn
    (0.03, 0.00, 0.00, 0.08),  # person: cloth
    (0.03, 0.00, 0.00, 0.08),  # rider
    (0.00, 0.00, 0.00, 0.03),  # car: smooth paint
    (0.01, 0.00, 0.03, 0.03),  # truck: ribbed box
    (0.00, 0.00, 0.00, 0.03),  # bus
    (0.00, 0.00, 0.00, 0.03),  # train
    (0.02, 0.00, 0.00, 0.03),  # motorcycle
    (0.02, 0.00, 0.00, 0.03),  # bicycle
    (0.00, 0.00, 0.00, 0.02),  # void
)


@dataclass(frozen=True)
class Scene:
    """One frame and its truth.

    image: uint8 [H, W, 3] RGB. labels: uint8 [H, W], train ids 0..18, 255 is void. instances: int32 [H, W], the
    Cityscapes instanceIds: labelId * 1000 + n (n from 0) on things, the plain labelId elsewhere, 0 on void.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.int32]


def draw(split: str, index: int, height: int, width: int) -> Scene:
    """Draw scene `index` of `split` at height x width (each at least 64).

    The arrays of the result are uint8 [height, width, 3], uint8 [height, width] and int32 [height, width].
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {sorted(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    if height < 64 or width < 64:
        raise ValueError(f"height and width must be at least 64, got {height}x{width}")
    seed = np.random.SeedSequence([VERSION, SPLITS[split], index])
    street = _Street(np.random.default_rng(seed), height, width)
    street.compose()
    # Sensor noise depends on the size, hence its own stream: the scene's stream must not.
    return street.develop(np.random.default_rng(seed.spawn(1)[0]))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 from hue, saturation and value in 0..1."""
    turns = [(n + 6 * hue) % 6 for n in (5, 3, 1)]
    r, g, b = (255 * value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0))) for k in turns)
    return r, g, b


def _times(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


class _Canvas:
    """An RGB picture and, beside it, the map of object numbers that labels, instances and depth are read from."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.sx, self.sy = width / CANVAS_W, height / CANVAS_H
        self.rgb = Image.new("RGB", (width, height))
        self.ids = Image.new("I", (width, height), 0)
        self.ink, self.tag = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.ids)
        self.train: list[int] = [VOID]
        self.code: list[int] = [0]
        self.depth: list[float] = [-1.0]  # metres; negative: read the depth from the picture row
        self.count: dict[int, int] = {}
        self.light: Colour = (1.0, 1.0, 1.0)

    def new(self, train: int, depth: float = -1.0) -> int:
        """Number of a new object of class `train`."""
        code = 0
        if train != VOID:
            code = LABEL_IDS[train]
            if train >= PERSON:
                n = self.count.get(train, 0)
                self.count[train] = n + 1
                code = code * 1000 + n
        self.train.append(train)
        self.code.append(code)
        self.depth.append(depth)
        return len(self.train) - 1

    def lit(self, colour: Colour, glows: bool = False) -> tuple[int, int, int]:
        """The colour under the scene's light; a lamp (`glows`) keeps its own."""
        a, b, c = (1.0, 1.0, 1.0) if glows else self.light
        return min(255, int(colour[0] * a)), min(255, int(colour[1] * b)), min(255, int(colour[2] * c))

    def poly(self, points: Polygon, colour: Colour | None, obj: int = 0, glows: bool = False) -> None:
        """Fill a polygon; no colour: only tag it, no object: only paint it."""
        sx, sy = self.sx, self.sy
        flat = [(x * sx, y * sy) for x, y in points]
        xs, ys = [p[0] for p in flat], [p[1] for p in flat]
        if max(xs) < 0 or max(ys) < 0 or min(xs) > self.width or min(ys) > self.height:
            return
        if colour is not None:
            self.ink.polygon(flat, fill=self.lit(colour, glows))
        if obj:
            self.tag.polygon(flat, fill=obj)

    def disc(
        self, x: float, y: float, rx: float, ry: float, colour: Colour | None, obj: int = 0, glows: bool = False
    ) -> None:
        """Fill an ellipse about (x, y)."""
        sx, sy = self.sx, self.sy
        box = ((x - rx) * sx, (y - ry) * sy, (x + rx) * sx, (y + ry) * sy)
        if box[2] < 0 or box[3] < 0 or box[0] > self.width or box[1] > self.height:
            return
        if colour is not None:
            self.ink.ellipse(box, fill=self.lit(colour, glows))
        if obj:
            self.tag.ellipse(box, fill=obj)

    def ring(self, x: float, y: float, rx: float, ry: float, thick: float, colour: Colour, obj: int) -> None:
        """A see-through wheel: only the rim is painted, the whole disc belongs to the object."""
        sx, sy = self.sx, self.sy
        box = ((x - rx) * sx, (y - ry) * sy, (x + rx) * sx, (y + ry) * sy)
        self.ink.ellipse(box, outline=self.lit(colour), width=max(1, round(thick * sy)))
        self.tag.ellipse(box, fill=obj)

    def bar(self, a: Point, b: Point, thick: float, colour: Colour | None, obj: int = 0, glows: bool = False) -> None:
        """A straight bar of the given thickness (canvas units), drawn as a polygon so that it scales with the size."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        k = thick / 2 / (math.hypot(dx, dy) or 1.0)
        nx, ny = -dy * k, dx * k
        self.poly(
            [(a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny)],
            colour,
            obj,
            glows,
        )


class _Street:
    """One scene: its camera, light and things."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.cv = rng, _Canvas(height, width)
        u = self.uniform
        self.focal, self.eye = u(600, 800), u(1.35, 2.2)
        self.hy, self.vx = u(170, 270), u(330, 694)
        self.time = str(rng.choice(["day", "dusk", "night", "fog"], p=[0.6, 0.16, 0.12, 0.12]))
        self.rain = self.chance(0.15)
        self.sun = float(rng.choice([-1, 1]))  # the side of the street that is lit
        self.sunny = self.time == "day" and not self.rain and self.chance(0.6)
        self.glows: list[tuple[float, float, float, Colour, int]] = []
        self.shadow = Image.new("L", (width, height), 0)
        self.shade_ink = ImageDraw.Draw(self.shadow)
        self.left, self.right = -u(3.2, 6.6), u(2.8, 5.9)  # the curbs, metres
        level = {"day": u(0.8, 1.1), "dusk": u(0.4, 0.75), "night": u(0.25, 0.45), "fog": u(0.6, 0.95)}[self.time]
        tint = {"day": (1.0, 1.0, 0.97), "dusk": (1.1, 0.92, 0.8), "night": (0.85, 0.92, 1.15), "fog": (1.0, 1.0, 1.0)}
        self.cv.light = _times(tint[self.time], level * (0.8 if self.rain else 1.0))
        self.queue: list[tuple[float, Callable[[], object]]] = []

    # ---- chance ------------------------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def integer(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def paint(self) -> Colour:
        """Any colour: of vehicles, cloth, signs."""
        if self.chance(0.4):
            v = self.uniform(15, 240)
            return v, v + self.uniform(-6, 6), v + self.uniform(-8, 8)
        return _hsv(self.uniform(0, 1), self.uniform(0.2, 0.95), self.uniform(0.2, 0.95))

    def mineral(self, low: float, high: float) -> Colour:
        """Stone, plaster, asphalt: a tinted grey."""
        v, warm, green = self.uniform(low, high), self.uniform(-0.1, 0.14), self.uniform(-0.04, 0.05)
        return v * (1 + warm), v * (1 + green), v * (1 - warm)

    def masonry(self) -> Colour:
        """What buildings and walls are made of."""
        pick = self.rng.random()
        if pick < 0.5:
            return self.mineral(60, 215)
        if pick < 0.75:
            return _hsv(self.uniform(0.0, 0.06), self.uniform(0.35, 0.65), self.uniform(0.3, 0.7))
        return _hsv(self.uniform(0, 1), self.uniform(0.1, 0.5), self.uniform(0.4, 0.95))

    def railing(self) -> Colour:
        """Painted or galvanized metal: dark green, black, white or zinc."""
        pick = self.rng.random()
        if pick < 0.4:
            return _hsv(self.uniform(0.35, 0.45), self.uniform(0.4, 0.8), self.uniform(0.2, 0.5))
        return self.mineral(190, 245) if pick < 0.7 else self.mineral(20, 60)

    def rampart(self) -> Colour:
        """What free-standing walls are made of: brick more often than anything else."""
        if self.chance(0.65):
            return _hsv(self.uniform(0.0, 0.05), self.uniform(0.45, 0.7), self.uniform(0.4, 0.7))
        return self.mineral(130, 215)

    def paving(self) -> Colour:
        """Slabs and setts: lighter than asphalt as a rule, often reddish or sandy."""
        if self.chance(0.45):
            return _hsv(self.uniform(0.0, 0.11), self.uniform(0.12, 0.4), self.uniform(0.5, 0.85))
        return self.mineral(100, 215)

    def turf(self) -> Colour:
        """Grass and bare ground: yellower and lighter than leaves as a rule."""
        if self.chance(0.25):
            return _hsv(self.uniform(0.06, 0.13), self.uniform(0.3, 0.65), self.uniform(0.4, 0.75))
        return _hsv(self.uniform(0.14, 0.3), self.uniform(0.35, 0.8), self.uniform(0.4, 0.8))

    def plant(self, dry: float) -> Colour:
        """Leaves or ground cover; `dry` is the chance of autumn or bare earth."""
        if self.chance(dry):
            return _hsv(self.uniform(0.02, 0.15), self.uniform(0.3, 0.8), self.uniform(0.3, 0.75))
        return _hsv(self.uniform(0.2, 0.38), self.uniform(0.35, 0.8), self.uniform(0.22, 0.6))

    # ---- geometry ----------------------------------------------------------------------------------------------

    def at(self, x: float, y: float, z: float) -> Point:
        """Canvas point of the world point (right, up, ahead), metres."""
        k = self.focal / max(z, 1.2)
        return self.vx + k * x, self.hy + k * (self.eye - y)

    def floor(self, x0: float, x1: float, z0: float, z1: float) -> list[Point]:
        """A rectangle on the ground."""
        return [self.at(x0, 0, z0), self.at(x1, 0, z0), self.at(x1, 0, z1), self.at(x0, 0, z1)]

    def flank(self, x: float, y0: float, y1: float, z0: float, z1: float) -> list[Point]:
        """A rectangle in the upright plane along the street at `x`."""
        return [self.at(x, y0, z0), self.at(x, y1, z0), self.at(x, y1, z1), self.at(x, y0, z1)]

    def front(self, x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
        """A rectangle that faces the camera."""
        return [self.at(x0, y0, z), self.at(x0, y1, z), self.at(x1, y1, z), self.at(x1, y0, z)]

    def shade(self, points: Polygon, strength: int) -> None:
        """Cast a shadow on the ground; effective until the ground is finished."""
        sx, sy = self.cv.sx, self.cv.sy
        self.shade_ink.polygon([(x * sx, y * sy) for x, y in points], fill=strength)

    def glow(self, p: Point, radius: float, colour: Colour, obj: int) -> None:
        """Remember a halo about a lamp of the object; halos are added after the haze, where the lamp is in sight."""
        self.glows.append((p[0], p[1], radius, colour, obj))

    # ---- the whole ---------------------------------------------------------------------------------------------

    def compose(self) -> None:
        """Draw the whole scene, far to near."""
        self.sky()
        self.plan_ground()
        self.plan_traffic()
        self.plan_people()
        self.plan_furniture()
        self.ground()
        self.backdrop()
        self.sides()
        for _, job in sorted(self.queue, key=lambda item: -item[0]):
            job()
        self.bonnet()

    def sky(self) -> None:
        """Gradient and clouds behind everything."""
        cv, u = self.cv, self.uniform
        if self.time == "night":
            top, low = _hsv(u(0.55, 0.72), u(0.3, 0.8), u(0.03, 0.16)), _hsv(u(0, 1), u(0.1, 0.4), u(0.1, 0.3))
        elif self.time == "dusk":
            top, low = _hsv(u(0.55, 0.8), u(0.2, 0.6), u(0.25, 0.6)), _hsv(u(-0.03, 0.12), u(0.3, 0.8), u(0.5, 0.98))
        elif self.time == "fog" or self.rain or self.chance(0.35):
            grey = self.mineral(140, 250)
            top, low = _times(grey, u(0.75, 1.0)), grey
        else:
            top, low = _hsv(u(0.54, 0.64), u(0.25, 0.8), u(0.6, 1.0)), _hsv(u(0.5, 0.62), u(0.03, 0.25), u(0.85, 1.0))
        self.haze = _mix(low, self.mineral(150, 230) if self.time != "night" else self.mineral(25, 60), 0.5)
        cloud, cover = _mix(low, (255.0, 255.0, 255.0), u(-0.6, 0.7)), u(0.0, 0.9)
        coarse, fine = self.rng.random((6, 9), dtype=np.float32), self.rng.random((16, 24), dtype=np.float32)
        size = (cv.width, cv.height)
        field = _stretch(coarse, size) * 0.65 + _stretch(fine, size) * 0.35
        rows = max(1, min(cv.height, math.ceil((self.hy + 12) * cv.sy)))
        t = (np.arange(rows, dtype=np.float32) / np.float32(self.hy * cv.sy))[:, None, None].clip(0, 1)
        a, b = np.array(top, np.float32), np.array(low, np.float32)
        base = a + (b - a) * t
        amount = ((field[:rows] - (0.75 - 0.5 * cover)) * 3).clip(0, 1)[..., None] * np.float32(0.75)
        base = base + (np.array(cloud, np.float32) - base) * amount
        cv.rgb.paste(Image.fromarray(base.clip(0, 255).astype(np.uint8)), (0, 0))
        cv.tag.rectangle((0, 0, cv.width, rows), fill=cv.new(SKY))

    def plan_ground(self) -> None:
        """Choose the strips beside the road: their widths and what they are."""
        u = self.uniform
        self.strips: dict[int, list[tuple[int, float]]] = {}
        for side in (-1, 1):
            walk, green = (SIDEWALK, u(2.2, 4.5)), (TERRAIN, u(1.3, 4.5))
            plans = [[walk], [green, walk], [walk, green], [green]]
            self.strips[side] = plans[int(self.rng.choice(4, p=[0.42, 0.24, 0.26, 0.08]))]
        self.edge = {s: (self.left if s < 0 else self.right) + s * sum(w for _, w in self.strips[s]) for s in (-1, 1)}

    def ground(self) -> None:
        """Road with markings, sidewalks with joints and curbs, grass."""
        cv, u = self.cv, self.uniform
        road, walk, green = cv.new(ROAD), cv.new(SIDEWALK), cv.new(TERRAIN)
        asphalt, paving, grass = self.mineral(45, 120), self.paving(), self.turf()
        if self.rain:
            asphalt = _times(asphalt, 0.75)
        for side in (-1, 1):
            far = TERRAIN if self.chance(0.6) else SIDEWALK
            x, floor = self.vx if side > 0 else -9.0, self.hy
            box = [(x, floor), (x + 1100.0, floor), (x + 1100.0, 520.0), (x, 520.0)]
            if side < 0:
                box = [(-9.0, floor), (self.vx, floor), (self.vx, 520.0), (-9.0, 520.0)]
            cv.poly(box, grass if far == TERRAIN else paving, green if far == TERRAIN else walk)
        cv.poly(self.floor(self.left, self.right, 1.2, 900), asphalt, road)
        for _ in range(self.integer(0, 6)):  # patches and manholes of the same class
            x, z, tone = u(self.left + 1, self.right - 2), u(4, 25), u(0.7, 1.25)
            cv.poly(self.floor(x, x + u(0.5, 2.0), z, z + u(0.6, 5)), _times(asphalt, tone))
        paint = _mix((245.0, 245.0, 240.0), (235.0, 190.0, 60.0), u(0, 1) ** 4)
        paint = _mix(paint, asphalt, u(0.0, 0.45))
        lanes = max(2, round((self.right - self.left) / 3.3))
        for k in range(1, lanes):
            x, z = self.left + (self.right - self.left) * k / lanes, u(1, 4)
            solid, dash, gap = self.chance(0.25), u(2, 4), u(2, 5)
            while z < 70:
                end = 90.0 if solid else z + dash
                cv.poly(self.floor(x - 0.08, x + 0.08, z, end), paint)
                z = end + gap
        if self.chance(0.3):  # zebra crossing
            z, x = u(6, 22), self.left + 0.4
            while x < self.right - 0.6:
                cv.poly(self.floor(x, x + 0.5, z, z + 3.2), paint)
                x += 1.0
        for rail in self.rails:
            cv.poly(self.floor(rail - 0.05, rail + 0.05, 1.2, 200), _times(asphalt, 0.45))
            cv.poly(self.floor(rail + 0.05, rail + 0.09, 1.2, 200), (205.0, 205.0, 210.0))
        joint = u(0.6, 0.82)
        for side in (-1, 1):
            x = self.left if side < 0 else self.right
            for kind, wide in self.strips[side]:
                a, b = x, x + side * wide
                cv.poly(
                    self.floor(a, b, 1.2, 900),
                    paving if kind == SIDEWALK else grass,
                    walk if kind == SIDEWALK else green,
                )
                if kind == SIDEWALK:
                    tile = u(0.6, 1.2)
                    for n in range(1, int(wide / tile) + 1):
                        c = a + side * n * tile
                        cv.poly(self.floor(c - 0.025, c + 0.025, 1.2, 45), _times(paving, joint))
                    z = 2.0
                    while z < 30:
                        cv.poly(self.floor(a, b, z, z + 0.05 + z * 0.004), _times(paving, joint))
                        z += tile
                x = b
            edge = self.left if side < 0 else self.right
            first = self.strips[side][0][0]
            stone = walk if first == SIDEWALK else green
            cv.poly(self.floor(edge, edge + side * 0.22, 1.2, 200), self.mineral(110, 215), stone)
            cv.poly(self.floor(edge - side * 0.08, edge, 1.2, 200), _times(asphalt, 0.55))
        for side in (-1, 1):
            if self.sunny and side == -self.sun:  # the houses' shadow across the street
                reach = u(2, 9)
                z = 3.0
                while z < 70:
                    end = z + u(5, 18)
                    self.shade(self.floor(self.edge[side], self.edge[side] - side * (reach + u(-1, 1)), z, end), 150)
                    z = end + (u(2, 6) if self.chance(0.4) else 0)
        dark = Image.fromarray((np.asarray(cv.rgb) * np.float32(0.42)).astype(np.uint8))
        blur = self.shadow.filter(ImageFilter.BoxBlur(1.6 * cv.sy))
        cv.rgb.paste(dark, (0, 0), blur)

    def backdrop(self) -> None:
        """What closes the street at the far end: a skyline or trees, or nothing."""
        u, z = self.uniform, self.uniform(85, 130)
        x, leaf = -95.0, self.plant(0.15)
        kind = self.rng.random()
        while x < 95:
            wide = u(8, 20)
            if kind < 0.5 or (kind < 0.85 and self.chance(0.4)):
                self.house_front(x, x + wide, u(6, 26), z, self.masonry())
            elif kind < 0.85 and self.chance(0.8):
                self.crown(x + wide / 2, 3.0, z, wide * 0.65, u(3, 7), leaf, 26)
            x += wide * u(0.8, 1.1)

    # ---- the sides of the street -------------------------------------------------------------------------------

    def sides(self) -> None:
        """Houses, walls, fences, hedges along both sides; what stands behind the low ones first."""
        u = self.uniform
        kinds = ("building", "wall", "fence", "hedge", "open")
        wish = {side: [k for k in ("wall", "fence") if self.chance(0.55)] for side in (-1, 1)}
        for side in (-1, 1):
            edge, z = self.edge[side], u(4.5, 7.5)
            parts: list[tuple[str, float, float]] = []
            while z < 95:
                end = z + u(7, 19)
                parts.append((str(self.rng.choice(kinds, p=[0.6, 0.09, 0.09, 0.14, 0.08])), z, end))
                z = end
            for want in wish[side]:  # near enough to be seen well
                n = self.integer(0, 2)
                parts[n] = (want, parts[n][1], parts[n][2])
            bank = self.plant(0.15)
            for kind, z0, z1 in reversed(parts):
                if kind != "building":
                    pick, back = self.rng.random(), edge + side * u(4, 10)
                    if pick < 0.4:
                        self.house(back, side, z0, z1, u(6, 20))
                    elif pick < 0.8:
                        for _ in range(self.integer(1, 3)):
                            self.tree(edge + side * u(2.5, 7), u(z0, z1), u(5, 10), bank)
            low, tone, style = u(1.5, 3.2), self.rampart(), self.integer(0, 2)
            for kind, z0, z1 in reversed(parts):
                if kind == "building":
                    self.house(edge, side, z0, z1, u(6, 24))
                elif kind == "wall":
                    self.wall(edge, side, z0, z1, low, tone)
                elif kind == "fence":
                    self.fence(edge, side, z0, z1, u(1.3, 2.4), style)
                elif kind == "hedge":
                    self.hedge(edge, side, z0, z1, u(1.0, 3.2), self.plant(0.2))

    def panes(self, rows: int, cols: int) -> tuple[Colour, list[bool]]:
        """The glass of one facade and which of its rows * cols windows are lit."""
        share = {"day": 0.04, "dusk": 0.25, "night": 0.35, "fog": 0.1}[self.time]
        lit = (self.rng.random(rows * cols) < share).tolist()
        return _mix(self.mineral(25, 110), (90.0, 120.0, 150.0), self.uniform(0, 0.7)), lit

    def house(self, x: float, side: int, z0: float, z1: float, high: float) -> None:
        """A building along the street: its facade at `x` from z0 to z1 and its end wall towards the camera."""
        cv, u = self.cv, self.uniform
        tone, obj = self.masonry(), cv.new(BUILDING, (z0 + z1) / 2)
        sunlit = 1.12 if self.sun == -side else (0.72 if self.sunny else 0.92)
        self.house_front(x, x + side * 14, high, z0, _times(tone, 0.9 if self.sun == side else 0.8))
        wall = _times(tone, sunlit)
        cv.poly(self.flank(x, 0, high, z0, z1), wall, obj)
        if self.chance(0.45):  # courses of brick or cladding
            step = u(0.35, 0.8)
            for n in range(1, int(high / step)):
                cv.bar(self.at(x, n * step, z0), self.at(x, n * step, z1), 1.0, _times(wall, 0.86))
        storey, bay = u(2.7, 3.6), u(1.7, 3.4)
        rows, cols = max(1, int((high - 0.8) / storey)), max(2, int((z1 - z0) / bay))
        glass, lit = self.panes(rows, cols)
        frame = _mix(wall, (235.0, 235.0, 230.0), u(-0.5, 0.9))
        wide, tall = u(0.4, 0.75), u(0.45, 0.7)
        shop, ribbon, warm = self.chance(0.45), self.chance(0.15), (255.0, u(170, 230), u(90, 170))
        bay = (z1 - z0) / cols
        awning = self.paint()
        for r in range(rows):
            y = r * storey + storey * (1 - tall) * 0.6
            y1 = y + storey * tall
            if r == 0 and shop:
                y, y1 = 0.35, storey * 0.72
            if ribbon and r:
                cv.poly(self.flank(x, y, y1, z0 + 0.3, z1 - 0.3), glass)
            for c in range(cols):
                w = bay * (0.88 if r == 0 and shop else wide)
                a = z0 + c * bay + (bay - w) / 2
                glows = lit[r * cols + c]
                if not ribbon or r == 0:
                    m = 0.1
                    cv.poly(self.flank(x, y - m, y1 + m, a - m, a + w + m), frame)
                    cv.poly(self.flank(x, y, y1, a, a + w), warm if glows else glass, 0, glows)
                    p, q = self.at(x, y, a + w / 2), self.at(x, y1, a + w / 2)
                    cv.bar(p, q, 0.06 * self.focal / (a + w / 2), frame)
                else:
                    p, q = self.at(x, y, a), self.at(x, y1, a)
                    cv.bar(p, q, 0.09 * self.focal / a, frame)
        if shop:
            cv.poly(self.flank(x, storey * 0.74, storey * 0.93, z0 + 0.2, z1 - 0.2), awning)
        else:
            door = z0 + (z1 - z0) * u(0.2, 0.8)
            cv.poly(self.flank(x, 0, 2.2, door, door + 1.1), _times(awning, 0.6))
        cv.poly(self.flank(x, high - 0.35, high, z0, z1), _times(frame, 0.8))

    def house_front(self, x0: float, x1: float, high: float, z: float, tone: Colour) -> None:
        """A wall of a building that faces the camera, with windows."""
        cv, u = self.cv, self.uniform
        x0, x1 = min(x0, x1), max(x0, x1)
        cv.poly(self.front(x0, x1, 0, high, z), tone, cv.new(BUILDING, z))
        step, storey = u(2.2, 3.6), u(2.8, 3.5)
        rows, cols = max(1, int((high - 0.8) / storey)), max(1, int((x1 - x0) / step))
        glass, lit = self.panes(rows, cols)
        blind, half = self.chance(0.25), step * u(0.22, 0.36)
        for r in range(rows):
            for c in range(0 if blind else cols):
                x, y = x0 + (c + 0.5) * (x1 - x0) / cols, r * storey + 1.0
                glows = lit[r * cols + c]
                cv.poly(
                    self.front(x - half, x + half, y, y + 1.5, z), (255.0, 205.0, 130.0) if glows else glass, 0, glows
                )
        cv.poly(self.front(x0, x1, high - 0.4, high, z), _times(tone, 0.7))

    def wall(self, x: float, side: int, z0: float, z1: float, high: float, tone: Colour) -> None:
        """A free-standing wall: no windows, a coping, courses or panels, now and then graffiti."""
        cv, u = self.cv, self.uniform
        obj, lit = cv.new(WALL, (z0 + z1) / 2), _times(tone, 1.05 if self.sun == -side else 0.85)
        cv.poly(self.front(x, x + side * 0.4, 0, high, z0), _times(lit, 0.8), obj)
        cv.poly(self.flank(x, 0, high, z0, z1), lit, obj)
        brick, seam = self.chance(0.85), _mix(lit, (225.0, 220.0, 210.0), u(0.35, 0.6))
        step, length = (0.25, 0.7) if brick else (high, u(2, 3.5))
        for n in range(int(high / step)):
            y = n * step
            if n:
                cv.bar(self.at(x, y, z0), self.at(x, y, z1), 1.2, seam)
            z = z0 + (length / 2 if n % 2 else length)
            while z < min(z1, 24.0 if brick else z1):
                cv.bar(self.at(x, y, z), self.at(x, y + step, z), 1.2, seam)
                z += length
        if self.chance(0.35):
            a = u(z0, z1 - 3)
            scrawl = self.paint()
            spots = [self.at(x, u(0.2, 0.8) * high, a + 0.35 * k) for k in range(9)]
            for p, q in pairwise(spots):
                cv.bar(p, q, 0.12 * self.focal / a, scrawl)
        cv.poly(self.flank(x, high - 0.14, high, z0, z1), _mix(lit, (225.0, 225.0, 220.0), 0.5))

    def fence(self, x: float, side: int, z0: float, z1: float, high: float, style: int) -> None:
        """A fence: bars, mesh or planks; what shows through it counts as fence."""
        cv, u = self.cv, self.uniform
        tone = self.railing() if style < 2 else _hsv(u(0.07, 0.11), u(0.4, 0.65), u(0.45, 0.85))
        cv.poly(self.flank(x, 0.05, high, z0, z1), None, cv.new(FENCE, (z0 + z1) / 2))
        k = self.focal
        if style == 0:  # upright bars between two rails
            z = z0
            while z < z1:
                cv.bar(self.at(x, 0.05, z), self.at(x, high, z), max(1.6, 0.045 * k / z), tone)
                z += 0.2 + 0.012 * z
        elif style == 1:  # mesh
            z = z0 - high
            while z < z1:
                for lean in (0.0, high):
                    a, b = max(z0, z + lean), max(z0, z + high - lean)
                    cv.bar(self.at(x, 0.1, a), self.at(x, high, b), 1.3, tone)
                z += 0.3 + 0.02 * max(z, 0.0)
        else:  # planks
            z, n = z0, 0
            while z < z1:
                wide = 0.28 + 0.006 * z
                cv.poly(self.flank(x, 0.1, high - 0.06 * (n % 2), z, z + wide), _times(tone, 0.9 + 0.16 * (n % 2)))
                z += wide + 0.09
                n += 1
        for y in (0.18, 0.55, 1.0) if style != 1 else (0.05, 1.0):
            y *= high
            w = max(0.05, high * 0.04)
            cv.poly(self.flank(x, y - w, y, z0, z1), _times(tone, 0.8))
        z = z0
        while z <= z1:
            cv.bar(self.at(x, 0, z), self.at(x, high + 0.08, z), max(2.0, 0.09 * k / z), _times(tone, 0.7))
            z += 2.5

    def hedge(self, x: float, side: int, z0: float, z1: float, high: float, tone: Colour) -> None:
        """A hedge: a rough box of leaves."""
        cv = self.cv
        obj = cv.new(VEGETATION, (z0 + z1) / 2)
        cv.poly(self.front(x, x + side * 1.5, 0, high, z0), _times(tone, 0.75), obj)
        cv.poly(self.flank(x, 0, high, z0, z1), _times(tone, 0.85), obj)
        spots = self.rng.random((int(14 * (z1 - z0)), 4))
        for a, b, c, d in spots[np.argsort(-spots[:, 0])].tolist():
            z, y = z0 + a * (z1 - z0), (0.08 + 0.92 * b) * high
            p, r = self.at(x, y, z), (0.14 + 0.2 * c) * self.focal / z
            cv.disc(p[0], p[1], r, r * 0.8, _times(tone, 0.55 + 0.65 * d), obj)

    def crown(self, x: float, y: float, z: float, rx: float, ry: float, tone: Colour, blobs: int) -> int:
        """Leaves about the world point (x, y + ry, z), as overlapping blobs lit from above; the object's number."""
        cv, k = self.cv, self.focal / z
        obj = cv.new(VEGETATION, z)
        cx, cy = self.at(x, y + ry, z)
        cv.disc(cx, cy, rx * k * 0.8, ry * k * 0.8, _times(tone, 0.6), obj)
        for a, b, c, d in self.rng.random((blobs, 4)).tolist():
            s, turn = math.sqrt(b) * 0.9, a * 2 * math.pi
            dx, dy = s * math.cos(turn), s * math.sin(turn)
            r = (0.13 + 0.17 * c) * k
            cv.disc(
                cx + dx * rx * k,
                cy + dy * ry * k,
                r * (rx + ry) / 2,
                r * ry * 0.9,
                _times(tone, 0.5 + 0.45 * d - 0.22 * dy),
                obj,
            )
        return obj

    def tree(self, x: float, z: float, high: float, tone: Colour) -> None:
        """A tree: trunk and crown, both vegetation."""
        cv, u = self.cv, self.uniform
        foot = high * u(0.22, 0.38)
        rx, ry = high * u(0.2, 0.36), (high - foot) / 2
        trunk = cv.new(VEGETATION, z)
        bark, k, lean = self.mineral(40, 110), self.focal / z, u(-0.3, 0.3)
        a, b = self.at(x, 0, z), self.at(x + lean, foot + ry * 0.6, z)
        w = high * 0.022 * k
        cv.poly(
            [(a[0] - w * 1.3, a[1]), (b[0] - w * 0.7, b[1]), (b[0] + w * 0.7, b[1]), (a[0] + w * 1.3, a[1])],
            bark,
            trunk,
        )
        cv.bar((a[0] - w * 0.4, a[1]), (b[0] - w * 0.2, b[1]), w * 0.5, _times(bark, 0.7))
        self.crown(x + lean, foot, z, rx, ry, tone, 70)

    # ---- vehicles ----------------------------------------------------------------------------------------------

    def plan_traffic(self) -> None:
        """Fill the lanes with vehicles that do not overlap, and now and then let one cross the street."""
        u = self.uniform
        wide = self.right - self.left
        self.rails: list[float] = []
        lanes = [(self.left + 1.1, 0.45, True), (self.right - 1.1, 0.45, False)]  # parked
        if wide > 6.2:
            lanes.append((self.left + wide * (0.42 if wide < 9 else 0.36), 0.5, True))
        if wide > 8.2:
            lanes.append((self.right - wide * (0.4 if wide < 10 else 0.34), 0.45, False))
        spare = [kind for kind, p in ((TRUCK, 0.42), (BUS, 0.4), (TRAIN, 0.4)) if self.chance(p)]
        self.rng.shuffle(spare)
        large = dict(zip(self.rng.permutation(len(lanes)).tolist(), spare, strict=False))
        for kind in spare[len(large) :]:
            self.crossing(kind)
        for n, (x, fill, oncoming) in enumerate(lanes):
            first = large.get(n, -1)
            z = u(5.5, 12) if n < 2 else u(8, 16)
            z += u(2, 9) if first >= 0 else 0.0
            if first == TRAIN:
                self.rails += [x - 0.72, x + 0.72]
            while z < 62:
                kind = first if first >= 0 else CAR
                if first < 0 and not self.chance(fill):
                    z += u(4, 12)
                    continue
                if first < 0 and self.chance(0.07):
                    kind = int(self.rng.choice([TRUCK, BUS]))
                shift = 0.0 if kind == CAR else (0.35 if x < 0 else -0.35)
                z += self.vehicle(kind, x + shift, z, 0.0, oncoming) + u(1.2, 8)
                first = -1
        if self.chance(0.4):
            self.crossing(int(self.rng.choice([CAR, TRUCK, BUS, TRAIN], p=[0.46, 0.18, 0.18, 0.18])))

    def crossing(self, kind: int) -> None:
        """A vehicle seen from the side, across the street."""
        z = self.uniform(12, 24) if kind == CAR else self.uniform(17, 34)
        reach = 0.25 * z if kind == CAR else 0.4 * z
        turn = math.pi / 2 + self.uniform(-0.35, 0.35)
        self.vehicle(kind, self.uniform(-reach, reach), z, turn, self.chance(0.5))

    def vehicle(self, kind: int, x: float, z: float, turn: float, oncoming: bool) -> float:
        """Queue a vehicle whose near end is at `z` (its middle, when it stands across); its length in metres."""
        u = self.uniform
        long, wide, high = {
            CAR: (u(3.8, 4.9), u(1.75, 1.95), u(1.4, 1.8)),
            TRUCK: (u(6.5, 10.5), u(2.3, 2.5), u(2.9, 3.9)),
            BUS: (u(9, 12.5), u(2.45, 2.6), u(2.9, 3.3)),
            TRAIN: (u(16, 30), u(2.5, 2.7), u(3.3, 3.7)),
        }[kind]
        yaw = turn + (math.pi if oncoming else 0.0) + u(-0.04, 0.04)
        middle = z if turn else z + long / 2
        body = _Body(self, kind, x, middle, long, wide, high, yaw)
        near = middle - abs(math.cos(yaw)) * long / 2
        ground = [body.at(a * long * 0.52, 0, b * wide * 0.58) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
        self.shade(ground, 220)
        if self.sunny:
            drop = -self.sun * u(0.8, 1.6)
            cast = [
                self.at(
                    body.ground(a * long / 2, b * wide / 2)[0] + drop * b0,
                    0,
                    body.ground(a * long / 2, b * wide / 2)[1],
                )
                for a, b, b0 in ((-1, -1, 0), (-1, 1, 1), (1, 1, 1), (1, -1, 0))
            ]
            self.shade(cast, 170)
        self.queue.append((near, body.draw))
        return long

    # ---- people and two-wheelers -------------------------------------------------------------------------------

    def spot(self) -> tuple[float, float]:
        """A place (x, z) beside the road, within sight."""
        side = self.integer(0, 1) * 2 - 1
        z = 5.5 + 18 * self.uniform(0, 1) ** 1.4
        a, b = (self.left if side < 0 else self.right), self.edge[side]
        x = a + (b - a) * self.uniform(0.1, 0.9)
        # near the camera the sidewalk lies outside the picture; step back until the place is inside
        limit = ((990 - self.vx) if side > 0 else (self.vx - 34)) / self.focal
        return x, max(z, abs(x) / max(limit, 0.2))

    def plan_people(self) -> None:
        """Queue walkers, riders and parked two-wheelers."""
        u = self.uniform
        for _ in range(self.integer(2, 6)):
            x, z = self.spot()
            for n in range(1 + int(self.chance(0.35)) + int(self.chance(0.15))):
                self.walker(x + n * u(0.5, 0.8), z + u(-0.5, 0.5))
        for _ in range(self.integer(0, 2)):  # on the road
            self.walker(u(self.left, self.right), u(7, 22))
        if self.chance(0.8):
            for _ in range(self.integer(1, 3)):
                x = u(self.left + 0.8, self.right - 0.8)
                self.two_wheeler(BICYCLE if self.chance(0.55) else MOTORCYCLE, x, u(5.0, 11), True)
        for kind in (BICYCLE, MOTORCYCLE):
            if self.chance(0.55):
                x, z = self.spot()
                for n in range(self.integer(1, 3)):
                    self.two_wheeler(kind, x, min(z, 10.0) + n * u(0.9, 1.4), False)

    def walker(self, x: float, z: float) -> None:
        """Queue a person on foot."""
        u = self.uniform
        size, stride, swing = u(1.5, 1.92), u(0.02, 0.34), u(-0.3, 0.3)
        top, legs, skin = self.paint(), _times(self.paint(), 0.7), _hsv(u(0.04, 0.08), u(0.3, 0.6), u(0.35, 0.95))
        hair = _hsv(u(0.03, 0.12), u(0.1, 0.7), u(0.05, 0.6))
        coat, bag, slim, raised = self.chance(0.3), self.chance(0.3), u(0.85, 1.2), self.chance(0.12)
        pack = self.paint()
        self.shade(self.floor(x - 0.3, x + 0.3, z - 0.15, z + 0.25), 190)
        if self.sunny:
            self.shade([self.at(x - 0.12, 0, z), self.at(x + 0.12, 0, z), self.at(x - self.sun * 1.5, 0, z + 0.5)], 170)

        def job() -> None:
            cv, k = self.cv, self.focal / z * size / 1.75
            ox, oy = self.at(x, 0, z)
            obj = cv.new(PERSON, z)

            def p(a: float, b: float) -> Point:
                return ox + a * k, oy - b * k

            shoe = (25.0, 22.0, 22.0)
            for s, tone in ((-1, 0.8), (1, 1.0)):
                foot, knee = p(s * (0.07 + stride), 0.05), p(s * (0.09 + stride * 0.4), 0.48)
                cv.bar(p(s * 0.07 * slim, 0.9), knee, 0.17 * slim * k, _times(legs, tone), obj)
                cv.bar(knee, foot, 0.14 * slim * k, _times(legs, tone), obj)
                cv.disc(foot[0] + 0.04 * k * s, foot[1], 0.11 * k, 0.055 * k, shoe, obj)
            w = 0.22 * slim
            hem = 0.55 if coat else 0.84
            cv.bar(p(-w, 1.4), p(-w - 0.1 - abs(swing) * 0.5, 0.86), 0.115 * k, _times(top, 0.75), obj)
            hand = p(w + 0.25, 1.75) if raised else p(w + 0.1 + abs(swing), 0.88)
            cv.bar(p(w, 1.4), hand, 0.115 * k, _times(top, 0.85), obj)
            cv.disc(hand[0], hand[1], 0.055 * k, 0.06 * k, skin, obj)
            flare = 1.15 if coat else 0.85
            cv.poly(
                [
                    p(-w * flare, hem),
                    p(-w * 1.08, 1.38),
                    p(-w * 0.5, 1.5),
                    p(w * 0.5, 1.5),
                    p(w * 1.08, 1.38),
                    p(w * flare, hem),
                ],
                top,
                obj,
            )
            cv.poly([p(w * 0.35, hem), p(w * 0.35, 1.46), p(w * 1.05, 1.38), p(w * flare, hem)], _times(top, 0.82))
            if bag:
                cv.poly([p(-w - 0.1, 0.7), p(-w - 0.1, 1.02), p(-w + 0.12, 1.02), p(-w + 0.12, 0.7)], pack, obj)
            cv.bar(p(0, 1.45), p(0, 1.58), 0.1 * k, _times(skin, 0.85), obj)
            cv.disc(*p(0, 1.64), 0.105 * k, 0.135 * k, skin, obj)
            cv.poly([p(-0.105, 1.64), p(-0.1, 1.74), p(0, 1.785), p(0.1, 1.74), p(0.105, 1.66), p(0, 1.7)], hair, obj)

        self.queue.append((z, job))

    def two_wheeler(self, kind: int, x: float, z: float, ridden: bool) -> None:
        """Queue a bicycle or motorcycle, with its rider when `ridden`."""
        u = self.uniform
        facing = self.chance(0.45)  # seen from the front or from behind
        flip = (1.0 if self.chance(0.5) else -1.0) * u(0.65, 1.0)
        frame, top, legs = self.paint(), self.paint(), _times(self.paint(), 0.65)
        if self.chance(0.7):
            top = _hsv(u(0.05, 0.22), u(0.75, 1.0), u(0.8, 1.0))
        helmet, skin = self.paint(), _hsv(u(0.04, 0.08), u(0.3, 0.6), u(0.35, 0.95))
        bare = kind == BICYCLE and self.chance(0.4)
        behind = self.chance(0.5)
        self.shade(self.floor(x - (0.35 if facing else 0.9), x + (0.35 if facing else 0.9), z - 0.15, z + 0.3), 190)

        def job() -> None:
            cv, k = self.cv, self.focal / z
            ox, oy = self.at(x, 0, z)
            obj = cv.new(kind, z)
            rider = cv.new(RIDER, z) if ridden else 0
            c = 1.0 if facing else flip

            def p(a: float, b: float) -> Point:
                return ox + a * k * c, oy - b * k

            def bars(tone: Colour, thick: float, who: int, *points: Point) -> None:
                for a, b in pairwise(points):
                    cv.bar(p(*a), p(*b), thick * k, tone, who)

            dark = (22.0, 22.0, 26.0)
            motor = kind == MOTORCYCLE
            if facing:
                if ridden:
                    for s in (-1, 1):
                        bars(legs, 0.17, rider, (s * 0.12, 1.0), (s * 0.27, 0.7), (s * 0.17, 0.3))
                cv.disc(*p(0, 0.34), (0.1 if motor else 0.055) * k, 0.34 * k, dark, obj)
                bars(frame, 0.09 if not motor else 0.2, obj, (0, 0.42), (0, 0.98))
                if motor:
                    cv.poly(
                        [p(-0.2, 0.55), p(-0.26, 0.9), p(-0.12, 1.12), p(0.12, 1.12), p(0.26, 0.9), p(0.2, 0.55)],
                        frame,
                        obj,
                    )
                    lamp: Colour = (235.0, 40.0, 30.0) if behind else (255.0, 250.0, 225.0)
                    cv.disc(*p(0, 0.85), 0.1 * k, 0.09 * k, lamp, obj, True)
                    for s in (-1, 1):
                        bars(dark, 0.05, obj, (s * 0.2, 1.0), (s * 0.4, 1.2))
                        cv.disc(*p(s * 0.42, 1.22), 0.08 * k, 0.06 * k, dark, obj)
                bars(dark, 0.07, obj, (-0.34, 1.02), (0.34, 1.02))
                if ridden:
                    for s in (-1, 1):
                        bars(_times(top, 0.8), 0.12, rider, (s * 0.2, 1.45), (s * 0.33, 1.06))
                    cv.poly(
                        [p(-0.17, 0.95), p(-0.24, 1.45), p(-0.1, 1.56), p(0.1, 1.56), p(0.24, 1.45), p(0.17, 0.95)],
                        top,
                        rider,
                    )
                    self.head(p(0, 1.7), k, skin, helmet, rider, bare, motor)
                return
            r = 0.31 if motor else 0.34
            for a in (-0.56, 0.56):
                q = p(a, r)
                if motor:
                    cv.disc(*q, abs(c) * r * k, r * k, dark, obj)
                    cv.disc(*q, abs(c) * r * 0.5 * k, r * 0.5 * k, (130.0, 130.0, 135.0))
                else:
                    cv.ring(*q, abs(c) * r * k, r * k, 0.07 * k, dark, obj)
                    for turn in (0.3, 1.35, 2.4):
                        da, db = r * 0.95 * math.cos(turn), r * 0.95 * math.sin(turn)
                        cv.bar(p(a - da, r - db), p(a + da, r + db), 0.015 * k, (120.0, 120.0, 120.0))
            if motor:
                cv.poly([p(-0.25, 0.3), p(-0.3, 0.62), p(0.25, 0.62), p(0.3, 0.3)], (70.0, 70.0, 75.0), obj)
                bars((170.0, 170.0, 175.0), 0.08, obj, (0.2, 0.28), (-0.75, 0.33))
                cv.poly(
                    [
                        p(-0.8, 0.78),
                        p(-0.35, 0.62),
                        p(0.3, 0.6),
                        p(0.5, 0.85),
                        p(0.38, 1.0),
                        p(0.1, 1.0),
                        p(-0.1, 0.84),
                    ],
                    frame,
                    obj,
                )
                cv.poly([p(-0.75, 0.8), p(-0.7, 0.9), p(-0.1, 0.88), p(-0.1, 0.8)], dark, obj)
                bars((150.0, 150.0, 155.0), 0.08, obj, (0.56, r), (0.38, 1.08), (0.24, 1.12))
                cv.disc(*p(0.5, 0.92), 0.08 * k, 0.09 * k, (255.0, 250.0, 225.0), obj, True)
            else:
                bars(frame, 0.075, obj, (-0.56, r), (-0.16, 0.72), (0.4, 0.74), (0.0, 0.32), (-0.56, r))
                bars(frame, 0.075, obj, (0.0, 0.32), (-0.2, 0.9))
                bars(frame, 0.075, obj, (0.56, r), (0.37, 0.98), (0.48, 1.04))
                bars(dark, 0.09, obj, (-0.34, 0.93), (-0.1, 0.93))
            if ridden:
                hip, foot = (-0.2, 0.98), ((0.05, 0.3) if motor else (0.04, 0.24))
                bars(legs, 0.18, rider, hip, (0.22, 0.74))
                bars(legs, 0.14, rider, (0.22, 0.74), foot)
                cv.disc(*p(foot[0] + 0.06, foot[1] - 0.03), 0.12 * k, 0.06 * k, dark, rider)
                cv.poly([p(-0.36, 0.94), p(-0.12, 1.5), p(0.14, 1.52), p(0.2, 1.36), p(0.0, 0.9)], top, rider)
                bars(_times(top, 0.78), 0.12, rider, (0.08, 1.4), (0.2, 1.14), (0.42, 1.08))
                self.head(p(0.16, 1.67), k, skin, helmet, rider, bare, motor)

        self.queue.append((z, job))

    def head(self, p: Point, k: float, skin: Colour, helmet: Colour, obj: int, bare: bool, closed: bool) -> None:
        """A rider's head, mostly with a helmet."""
        cv = self.cv
        cv.disc(p[0], p[1], 0.11 * k, 0.14 * k, skin, obj)
        if closed:
            cv.disc(p[0], p[1] - 0.02 * k, 0.145 * k, 0.155 * k, helmet, obj)
            cv.bar((p[0] - 0.1 * k, p[1]), (p[0] + 0.1 * k, p[1]), 0.07 * k, (20.0, 20.0, 25.0))
        elif bare:
            cv.disc(p[0], p[1] - 0.08 * k, 0.11 * k, 0.08 * k, _times(skin, 0.35), obj)
        else:
            cv.disc(p[0], p[1] - 0.07 * k, 0.14 * k, 0.1 * k, helmet, obj)

    # ---- poles, lights, signs, street trees --------------------------------------------------------------------

    def plan_furniture(self) -> None:
        """Queue lamps, traffic lights, signs and street trees along the curbs."""
        u = self.uniform
        leaf = self.plant(0.15)
        for side in (-1, 1):
            curb = (self.left if side < 0 else self.right) + side * 0.6
            if self.chance(0.7):
                z, gap, high = u(7, 16), u(9, 20), u(4.5, 8)
                while z < 48:
                    self.lamp(curb, side, z, high)
                    z += gap
            if self.chance(0.6):
                z, gap, high = u(8, 22), u(6, 14), u(4.5, 8)
                while z < 55:
                    x, far, tall = curb + side * u(0.2, 1.2), z, high * u(0.85, 1.15)
                    self.shade(self.floor(x - 1, x + 1.5, far - 1, far + 1), 120)
                    self.queue.append((far, partial(self.tree, x, far, tall, leaf)))
                    z += gap
            if self.chance(0.22):  # a railing at the curb
                z0, high, style = u(7, 14), u(0.9, 1.2), self.integer(0, 1)
                z1 = z0 + u(5, 14)
                self.queue.append((z1 - 1, partial(self.fence, curb, side, z0, z1, high, style)))
        for _ in range(self.integer(1, 3) if self.chance(0.85) else 0):
            self.signal(u(7.5, 20))
        for _ in range(self.integer(1, 4) if self.chance(0.92) else 0):
            self.sign(u(7.5, 20))

    def post(self, x: float, z: float, high: float, thick: float, tone: Colour) -> None:
        """An upright pole; never thinner than a stride-8 network can hope to see."""
        cv = self.cv
        w = min(14.0, max(4.0, thick * self.focal / z))
        a, b = self.at(x, 0, z), self.at(x, high, z)
        cv.bar(a, b, w, tone, cv.new(POLE, z))
        cv.bar((a[0] + w * 0.28, a[1]), (b[0] + w * 0.28, b[1]), w * 0.4, _times(tone, 0.7))

    def lamp(self, x: float, side: int, z: float, high: float) -> None:
        """Queue a street lamp."""
        tone, arm, on = self.mineral(90, 170), self.uniform(0.6, 2.2), self.time in ("night", "dusk")
        warm = (255.0, self.uniform(190, 245), self.uniform(120, 220))

        def job() -> None:
            cv = self.cv
            self.post(x, z, high, 0.14, tone)
            obj = cv.new(POLE, z)
            a, b = self.at(x, high, z), self.at(x - side * arm, high + 0.25, z)
            cv.bar(a, b, max(3.0, 0.1 * self.focal / z), tone, obj)
            k = self.focal / z
            cv.disc(b[0], b[1] + 0.05 * k, 0.34 * k, 0.12 * k, warm if on else (200.0, 200.0, 195.0), obj, on)
            if on:
                self.glow(b, 1.6 * k, warm, obj)

        self.queue.append((z, job))

    def beside(self, z: float, slack: float) -> tuple[float, int]:
        """A place by the curb that is inside the picture at `z`, and its side."""
        side = self.integer(0, 1) * 2 - 1
        x = (self.left if side < 0 else self.right) + side * self.uniform(0.3, 0.3 + slack)
        limit = ((985 - self.vx) if side > 0 else (self.vx - 40)) / self.focal * z
        return side * min(abs(x), limit), side

    def signal(self, z: float) -> None:
        """Queue a traffic light, on its pole or over the road."""
        u = self.uniform
        x, side = self.beside(z, 0.5)
        tone, case = self.mineral(90, 175), self.mineral(12, 50)
        state, over, arm, high = self.integer(0, 2), self.chance(0.4), u(1.5, 4), u(2.6, 3.4)
        big, back = u(0.95, 1.35), self.chance(0.4)
        colours: list[Colour] = [(255.0, 45.0, 30.0), (255.0, 185.0, 30.0), (50.0, 255.0, 130.0)]

        def box(cx: float, y: float) -> None:
            cv, k = self.cv, self.focal / z * big
            obj = cv.new(LIGHT, z)
            ox, oy = self.at(cx, y, z)
            if back:  # a light board about the case
                cv.poly(
                    [(ox + a * 0.3 * k, oy + b * 0.64 * k) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))],
                    (230.0, 230.0, 230.0),
                    obj,
                )
            cv.poly(
                [(ox + a * 0.22 * k, oy + b * 0.56 * k) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))], case, obj
            )
            for n, colour in enumerate(colours):
                q = oy + (n - 1) * 0.35 * k
                cv.disc(ox, q, 0.14 * k, 0.14 * k, colour if n == state else _times(colour, 0.22), 0, n == state)
                if n == state:
                    self.glow((ox, q), 0.5 * k, colour, obj)

        def job() -> None:
            top = 5.6 if over else high + 0.6
            self.post(x, z, top, 0.15, tone)
            if over:
                obj = self.cv.new(POLE, z)
                tip = x - side * arm
                self.cv.bar(
                    self.at(x, top - 0.1, z), self.at(tip, top + 0.1, z), max(3.5, 0.11 * self.focal / z), tone, obj
                )
                box(tip, top - 0.2)
            box(x - side * 0.12, high)

        self.queue.append((z, job))

    def sign(self, z: float) -> None:
        """Queue a traffic sign on a pole: disc, triangle, diamond or board."""
        u = self.uniform
        x, _ = self.beside(z, 0.9)
        shape, tone, high, size = self.integer(0, 4), self.mineral(90, 180), u(2.1, 3.0), u(0.4, 0.56)
        faces: list[tuple[Colour, Colour]] = [
            ((245.0, 245.0, 240.0), (205.0, 25.0, 30.0)),
            ((20.0, 75.0, 180.0), (240.0, 240.0, 240.0)),
            ((250.0, 205.0, 30.0), (25.0, 25.0, 25.0)),
            ((10.0, 115.0, 70.0), (240.0, 240.0, 240.0)),
            ((205.0, 25.0, 30.0), (245.0, 245.0, 245.0)),
        ]
        face, rim = faces[self.integer(0, 4)]
        fade = u(0.0, 0.2)
        face, rim = _mix(face, (150.0, 150.0, 150.0), fade), _mix(rim, (150.0, 150.0, 150.0), fade)
        second = self.chance(0.35)

        def plate(ox: float, oy: float, r: float, form: int, obj: int) -> None:
            cv = self.cv
            corners: dict[int, list[Point]] = {
                1: [(0, -1), (1, 0.8), (-1, 0.8)],
                2: [(0, -1.1), (1.1, 0), (0, 1.1), (-1.1, 0)],
                3: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
                4: [(-1.7, -1), (1.7, -1), (1.7, 1), (-1.7, 1)],
            }
            for scale, colour, who in ((1.0, rim, obj), (0.76, face, 0)):
                if form == 0:
                    cv.disc(ox, oy, r * scale, r * scale, colour, who)
                else:
                    cv.poly([(ox + a * r * scale, oy + b * r * scale) for a, b in corners[form]], colour, who)
            if form in (3, 4):  # lettering
                for n in range(3):
                    y = oy + (n - 1) * 0.42 * r
                    cv.bar((ox - r * 0.6, y), (ox + r * (0.6 if n != 1 else 0.2), y), 0.13 * r, rim)
            else:
                cv.bar((ox - r * 0.3, oy + r * 0.1), (ox + r * 0.3, oy + r * 0.1), 0.3 * r, rim)

        def job() -> None:
            k = self.focal / z
            self.post(x, z, high + size, 0.09, tone)
            obj = self.cv.new(SIGN, z)
            ox, oy = self.at(x, high, z)
            r = min(30.0, max(9.0, size * k))
            plate(ox, oy, r, shape, obj)
            if second:
                plate(ox, oy + r * 1.9, r * 0.8, 3, obj)

        self.queue.append((z, job))

    def bonnet(self) -> None:
        """The own car's bonnet, void, in some frames."""
        if not self.chance(0.25):
            return
        cv, top, tone = self.cv, self.uniform(455, 495), _times(self.paint(), 0.6)
        mid, half = self.uniform(480, 544), self.uniform(420, 560)
        xs = np.linspace(-1, 1, 15).tolist()
        arc = [(mid + a * half, top + 60 * a**4) for a in xs]
        cv.poly([*arc, (mid + half, 530.0), (mid - half, 530.0)], tone, cv.new(VOID, 1.5))
        cv.poly([(mid + a * half * 0.8, top + 14 + 50 * a**4) for a in xs] + [(mid, 530.0)], _times(tone, 1.25))

    # ---- the camera --------------------------------------------------------------------------------------------

    def develop(self, grain: np.random.Generator) -> Scene:
        """Texture, haze, halos, tone curve, blur and noise; then read off labels and instances."""
        cv, rng, u = self.cv, self.rng, self.uniform
        height, width = cv.height, cv.width
        ids = np.asarray(cv.ids).astype(np.uint16)
        train = np.array(cv.train, np.uint8)
        labels = train[ids]
        instances = np.array(cv.code, np.int32)[ids]
        weights = np.array(_TEXTURE, np.float32)
        size = (width, height)
        kinds = np.minimum(train, 19)
        # the grids of noise have a fixed number of cells: the same texture at every size
        fields = [
            rng.random((512, 1024), dtype=np.float32),
            rng.random((150, 300), dtype=np.float32),
            rng.random((64, 512), dtype=np.float32),
            rng.random((16, 32), dtype=np.float32),
        ]
        fields[1] = np.where(fields[1] > 0.62, np.float32(1.0), fields[1] * 0.8)
        gain = np.ones((height, width), np.float32)
        strength = u(0.8, 1.3)
        for n, field in enumerate(fields):
            centred = (_stretch(field, size) - np.float32(0.45)) * np.float32(2 * strength)
            gain += (weights[kinds, n])[ids] * centred
        pixels = np.asarray(cv.rgb).astype(np.float32)
        density = {"day": u(0.0, 0.006), "dusk": u(0.0, 0.01), "night": u(0.0, 0.008), "fog": u(0.012, 0.035)}[
            self.time
        ]
        density += 0.008 if self.rain else 0.0
        rows = (np.arange(height) + 0.5) / cv.sy - self.hy
        away = np.where(
            rows > 0, self.focal * self.eye / np.maximum(rows, 1.0), np.clip(60 + 1.2 * np.minimum(rows, 0), 8, 60)
        ).astype(np.float32)
        depth = np.array(cv.depth, np.float32)
        clear = np.exp(-density * depth).astype(np.float32)[ids]
        near = (depth < 0)[ids]
        clear = np.where(near, np.exp(-density * away).astype(np.float32)[:, None], clear)
        keep = (gain * clear)[..., None]
        pixels *= keep
        pixels += (1 - clear)[..., None] * np.array(self.haze, np.float32)
        self.halos(pixels, ids)
        if self.rain:
            pixels = self.streaks(pixels)
        dim = u(0.0, 0.45)
        fall = (np.linspace(-1, 1, height, dtype=np.float32) ** 2)[:, None] + (
            np.linspace(-1, 1, width, dtype=np.float32) ** 2
        )[None, :]
        pixels *= (1 - np.float32(dim * 0.5) * fall)[..., None]
        # one table per channel holds exposure, white balance, contrast, lift and gamma
        level = np.arange(4096, dtype=np.float64) / 4095
        exposure, gamma, lift = 2 ** u(-0.45, 0.6), 2 ** u(-0.5, 0.35), u(0.0, 0.18) * float(self.chance(0.35))
        if self.time == "night":
            exposure *= u(1.0, 2.0)
        contrast = u(0.8 if self.time == "night" else 0.65, 1.2)
        white = [2 ** u(-0.16, 0.16), 1.0, 2 ** u(-0.16, 0.16)]
        tone = np.empty((3, 4096), np.uint8)
        for c in range(3):
            value = np.clip(level * exposure * white[c], 0, 1) ** gamma
            value = (value - 0.4) * contrast + 0.4 * (0.6 + 0.4 * contrast) + lift * (1 - value)
            tone[c] = np.clip(value * 255, 0, 255).astype(np.uint8)
        index = np.clip(pixels * np.float32(4095 / 255), 0, 4095).astype(np.uint16)
        picture = np.stack([tone[c][index[..., c]] for c in range(3)], -1)
        blur = u(0.35, 0.6) + (u(0.3, 1.2) if self.chance(0.2) else 0.0)
        picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(blur * cv.sy)))
        sigma = 1.0 + 9 * u(0, 1) ** 2.5 * (1.5 if self.time == "night" else 1.0)
        noise = grain.standard_normal((height, width, 3), dtype=np.float32) * np.float32(sigma)
        image = np.clip(picture + noise, 0, 255).astype(np.uint8)
        return Scene(image, labels, instances)

    def halos(self, pixels: NDArray[np.float32], ids: NDArray[np.uint16]) -> None:
        """Add the halos of the lamps that show in ids, uint16 [H, W], to pixels, float32 [H, W, 3], box by box."""
        cv = self.cv
        power = {"day": 0.1, "dusk": 0.5, "night": 0.8, "fog": 0.45}[self.time]
        for x, y, radius, colour, obj in self.glows:
            rx, ry = radius * cv.sx, radius * cv.sy
            cx, cy = x * cv.sx, y * cv.sy
            row, col = min(max(int(cy), 0), cv.height - 1), min(max(int(cx), 0), cv.width - 1)
            if ids[row, col] != obj:
                continue
            x0, x1 = max(0, int(cx - rx)), min(cv.width, int(cx + rx) + 2)
            y0, y1 = max(0, int(cy - ry)), min(cv.height, int(cy + ry) + 2)
            if x0 >= x1 or y0 >= y1:
                continue
            dx = (np.arange(x0, x1, dtype=np.float32) - np.float32(cx)) / np.float32(max(rx, 1.0))
            dy = (np.arange(y0, y1, dtype=np.float32) - np.float32(cy)) / np.float32(max(ry, 1.0))
            fall = np.maximum(0, 1 - np.sqrt(dx[None, :] ** 2 + dy[:, None] ** 2)) ** 2
            pixels[y0:y1, x0:x1] += fall[..., None] * (np.array(colour, np.float32) * np.float32(power))

    def streaks(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Falling rain over pixels, float32 [H, W, 3]."""
        cv = self.cv
        veil = Image.new("L", (cv.width, cv.height), 0)
        ink, lean = ImageDraw.Draw(veil), self.uniform(-8, 8)
        for x, y, s in self.rng.random((260, 3)).tolist():
            a, b, h = x * CANVAS_W, y * CANVAS_H, 10 + 26 * s
            ink.line(
                (a * cv.sx, b * cv.sy, (a + lean * h / 26) * cv.sx, (b + h) * cv.sy),
                fill=int(20 + 40 * s),
                width=max(1, round(cv.sy)),
            )
        return pixels + (np.asarray(veil).astype(np.float32) * np.float32(min(1.0, self.cv.light[1] + 0.15)))[..., None]


def _stretch(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A float32 [h, w] field brought to size (width, height), as float32 [height, width]."""
    if field.shape == (size[1], size[0]):
        return field
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR, reducing_gap=1.5))


class _Body:
    """A vehicle as an extruded side profile that stands on the ground at any angle.

    Its own axes: u along (front positive), v up, w across; metres from the middle of its footprint.
    """

    PROFILES: ClassVar[dict[str, tuple[list[Point], str, list[list[Point]]]]] = {
        # (u / length, v / height) from the lower rear over the top to the lower front; one letter per edge:
        # b body, g glass, r roof, e end; then the side windows
        "sedan": (
            [
                (-0.5, 0.16),
                (-0.49, 0.6),
                (-0.38, 0.66),
                (-0.26, 1.0),
                (0.08, 1.0),
                (0.24, 0.64),
                (0.47, 0.55),
                (0.5, 0.16),
            ],
            "ebgrgbe",
            [
                [(-0.33, 0.67), (-0.245, 0.93), (-0.1, 0.93), (-0.1, 0.67)],
                [(-0.07, 0.67), (-0.07, 0.93), (0.06, 0.93), (0.18, 0.67)],
            ],
        ),
        "hatch": (
            [(-0.5, 0.16), (-0.5, 0.6), (-0.42, 0.99), (0.1, 1.0), (0.26, 0.62), (0.47, 0.53), (0.5, 0.16)],
            "egrgbe",
            [
                [(-0.45, 0.66), (-0.4, 0.92), (-0.13, 0.93), (-0.13, 0.65)],
                [(-0.1, 0.65), (-0.1, 0.93), (0.07, 0.93), (0.2, 0.65)],
            ],
        ),
        "van": (
            [(-0.5, 0.13), (-0.5, 0.6), (-0.48, 0.98), (0.27, 1.0), (0.42, 0.6), (0.5, 0.48), (0.5, 0.13)],
            "egrgbe",
            [
                [(-0.44, 0.6), (-0.44, 0.9), (-0.16, 0.9), (-0.16, 0.6)],
                [(-0.12, 0.6), (-0.12, 0.9), (0.08, 0.9), (0.08, 0.6)],
                [(0.11, 0.6), (0.11, 0.9), (0.25, 0.9), (0.36, 0.6)],
            ],
        ),
    }

    def __init__(
        self, street: _Street, kind: int, x: float, z: float, long: float, wide: float, high: float, yaw: float
    ) -> None:
        self.street, self.kind, self.x, self.z = street, kind, x, z
        self.long, self.wide, self.high = long, wide, high
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)
        u = street.uniform
        self.tone, self.trim = street.paint(), street.paint()
        self.glass = street.mineral(15, 80)
        self.form = ("sedan", "hatch", "van")[int(street.rng.choice(3, p=[0.4, 0.42, 0.18]))]
        self.lamps_on = street.time in ("night", "dusk", "fog") or street.chance(0.15)
        self.box, self.logo, self.stripe = street.mineral(90, 240), street.chance(0.5), u(0.2, 0.38)
        if street.chance(0.4):
            self.box = street.paint()
        if kind == BUS and street.chance(0.75):  # a city's livery: warm and strong
            self.tone = _hsv(u(0.0, 0.16), u(0.65, 0.95), u(0.6, 0.95))
        if kind == TRAIN and street.chance(0.75):  # white or cream with a band
            self.tone = _hsv(u(0.08, 0.16), u(0.0, 0.2), u(0.85, 0.98))
            self.trim = _hsv(u(0.55, 0.7) if street.chance(0.5) else u(0.28, 0.42), u(0.6, 0.95), u(0.4, 0.8))
        if kind == TRUCK and street.chance(0.6):
            self.tone = _hsv(u(0.52, 0.68), u(0.5, 0.95), u(0.35, 0.85))
        self.cab = u(1.9, 2.4) / long
        self.open_bed = street.chance(0.2)
        self.near = 1.0 if self.faces(0.0, 1.0) else -1.0
        self.seen = self.faces(0.0, self.near)  # straight ahead neither side is in sight
        self.obj = 0

    def ground(self, u: float, w: float) -> Point:
        """World (x, z) of the own point (u, w)."""
        return self.x + w * self.cos + u * self.sin, self.z + u * self.cos - w * self.sin

    def at(self, u: float, v: float, w: float) -> Point:
        x, z = self.ground(u, w)
        return self.street.at(x, v, z)

    def faces(self, along: float, across: float) -> bool:
        """Whether the end (along = 1 or -1) or the side (across) is turned to the camera."""
        u, w = along * self.long / 2, across * self.wide / 2
        x, z = self.ground(u, w)
        nx, nz = across * self.cos + along * self.sin, along * self.cos - across * self.sin
        return -(nx * x + nz * z) > 0

    def extrude(self, points: Sequence[Point], edges: str, tone: Colour) -> None:
        """Draw the profile swept across the width: far side, edges far to near, near side."""
        cv, half = self.street.cv, self.wide / 2
        inset = half * 0.86  # a roof is narrower than the body
        top = max(v for _, v in points)

        def w(v: float) -> float:
            return inset if self.kind == CAR and v > 0.9 * top else half

        real = [(u * self.long, v * self.high) for u, v in points]
        sides = {s: [self.at(u, v, s * w(v / self.high)) for u, v in real] for s in (-1, 1)}
        near = int(self.near)
        lit = 0.8 if self.street.sun * self.near * self.cos > 0 else 0.98
        cv.poly(sides[-near], _times(tone, 0.6), self.obj)
        if not self.seen:
            cv.poly(sides[near], _times(tone, 0.6), self.obj)
        shades = {"b": 1.0, "g": 0.95, "r": 1.12, "e": 0.86}
        order = sorted(range(len(edges)), key=lambda n: -self.ground((real[n][0] + real[n + 1][0]) / 2, 0)[1])
        for n in order:
            a, b = sides[-1], sides[1]
            quad = [a[n], a[n + 1], b[n + 1], b[n]]
            cv.poly(quad, _times(tone, shades[edges[n]]), self.obj)
            if edges[n] == "g":
                (u0, v0), (u1, v1) = real[n], real[n + 1]
                rim = []
                for t, s in ((0.1, -1), (0.88, -1), (0.88, 1), (0.1, 1)):
                    v = v0 + (v1 - v0) * t
                    rim.append(self.at(u0 + (u1 - u0) * t, v, s * w(v / self.high) * 0.86))
                cv.poly(rim, self.glass)
        if self.seen:
            cv.poly(sides[near], _times(tone, lit), self.obj)

    def side(self, points: Sequence[Point], colour: Colour, tag: bool = False, glows: bool = False) -> None:
        """A patch (u, v in metres) on the near side."""
        w = self.near * self.wide / 2
        if not self.seen:
            return
        self.street.cv.poly([self.at(u, v, w) for u, v in points], colour, self.obj if tag else 0, glows)

    def plate(self, u: float, v0: float, v1: float, w0: float, w1: float, colour: Colour, glows: bool = False) -> None:
        """A patch on an end, w as a share of the half width."""
        h = self.wide / 2
        spots = [self.at(u, v, w * h) for v, w in ((v0, w0), (v1, w0), (v1, w1), (v0, w1))]
        self.street.cv.poly(spots, colour, 0, glows)

    def wheels(self, places: Sequence[float], radius: float) -> None:
        """Wheels on the near side."""
        cv, w = self.street.cv, self.near * self.wide / 2
        turns = [n * math.pi / 7 for n in range(14)]
        for u in places if self.seen else ():
            for share, tone, obj in ((1.0, 18.0, self.obj), (0.55, 125.0, 0)):
                r = radius * share
                cv.poly(
                    [self.at(u + r * math.cos(t), radius + r * math.sin(t), w) for t in turns],
                    (tone, tone, tone + 2),
                    obj,
                )

    def feet(self, places: Sequence[float], radius: float) -> None:
        """Tyres as seen below the end that is turned to the camera."""
        cv, h = self.street.cv, self.wide / 2
        for u in places:
            for a, b in ((-0.98, -0.7), (0.7, 0.98)):
                cv.poly(
                    [self.at(u, v, w * h) for v, w in ((0, a), (radius, a), (radius, b), (0, b))],
                    (18.0, 18.0, 20.0),
                    self.obj,
                )

    def lamps(self, v: float, size: float) -> None:
        """Head and tail lamps on the ends that are in sight, with halos when they are on."""
        for end in (-1.0, 1.0):
            if not self.faces(end, 0.0):
                continue
            u = end * self.long / 2
            colour: Colour = (255.0, 250.0, 225.0) if end > 0 else (225.0, 25.0, 20.0)
            for s in (-1, 1):
                self.plate(u, v - size / 2, v + size / 2, s * 0.92, s * 0.6, colour, self.lamps_on)
                if self.lamps_on:
                    k = self.street.focal / max(self.ground(u, 0)[1], 3.0)
                    p = self.at(u, v, s * 0.76 * self.wide / 2)
                    self.street.glow(p, (0.9 if end > 0 else 0.5) * k, colour, self.obj)
            if self.kind == CAR:
                self.plate(u, v - 0.28, v - 0.14, -0.28, 0.28, (225.0, 225.0, 215.0))
                self.plate(u, self.high * 0.17, self.high * 0.24, -1, 1, _times(self.tone, 0.4))
                if end > 0:
                    self.plate(u, v - 0.1, v + 0.05, -0.45, 0.45, (25.0, 25.0, 28.0))

    def draw(self) -> None:
        """Draw the vehicle."""
        near_z = self.z - abs(self.cos) * self.long / 2
        self.obj = self.street.cv.new(self.kind, (near_z + self.z) / 2)
        {CAR: self.draw_car, TRUCK: self.draw_truck, BUS: self.draw_bus, TRAIN: self.draw_train}[self.kind]()

    def draw_car(self) -> None:
        points, edges, windows = self.PROFILES[self.form]
        high, long = self.high * (1.2 if self.form == "van" else 1.0), self.long
        self.high = high
        end = -0.46 if self.faces(-1.0, 0.0) else 0.46
        self.feet([end * long], 0.4)
        self.extrude(points, edges, self.tone)
        for window in windows:
            self.side([(u * long, v * high) for u, v in window], self.glass)
        self.side(
            [
                (-0.49 * long, 0.17 * high),
                (-0.49 * long, 0.24 * high),
                (0.49 * long, 0.24 * high),
                (0.49 * long, 0.17 * high),
            ],
            _times(self.tone, 0.45),
        )
        self.wheels([-0.31 * long, 0.31 * long], 0.33)
        self.lamps(0.45 * high, 0.16)

    def draw_truck(self) -> None:
        long, high, cab = self.long, self.high, self.cab
        split = 0.5 - cab
        end = -0.44 if self.faces(-1.0, 0.0) else 0.44
        self.feet([end * long], 0.95)
        cab_top = min(0.92, 2.7 / high)

        def cabin() -> None:
            points = [(split, 0.16), (split, cab_top), (0.46, cab_top), (0.5, 0.5 * cab_top + 0.05), (0.5, 0.16)]
            self.extrude(points, "erge", self.tone)
            u0, u1 = (split + cab * 0.25) * long, (0.5 - cab * 0.18) * long
            self.side(
                [
                    (u0, 0.55 * cab_top * high),
                    (u0, 0.9 * cab_top * high),
                    (u1, 0.9 * cab_top * high),
                    (u1 + 0.2, 0.55 * cab_top * high),
                ],
                self.glass,
            )
            if self.faces(1.0, 0.0):
                u = long / 2
                self.plate(u, 0.27 * high, 0.42 * high, -0.6, 0.6, (30.0, 30.0, 34.0))
                self.plate(u, 0.16 * high, 0.22 * high, -1, 1, _times(self.tone, 0.5))

        def load() -> None:
            top = 0.6 if self.open_bed else 1.0
            back, front = -0.5, split - 0.03
            self.extrude([(back, 0.27), (back, top), (front, top), (front, 0.27)], "ere", self.box)
            for n in range(1, 9):  # ribs
                u = (back + (front - back) * n / 9) * long
                self.side(
                    [(u, 0.28 * high), (u, top * high), (u + 0.06, top * high), (u + 0.06, 0.28 * high)],
                    _times(self.box, 0.78),
                )
            if self.logo and not self.open_bed:
                a, b = (back + 0.12) * long, (front - 0.12) * long
                self.side([(a, 0.55 * high), (a, 0.8 * high), (b, 0.8 * high), (b, 0.55 * high)], self.trim)
            if self.faces(-1.0, 0.0):  # two doors with their bars
                for w in (-0.5, 0.0, 0.5):
                    wide = 0.02 if w else 0.012
                    self.plate(back * long, 0.3 * high, top * 0.97 * high, w - wide, w + wide, _times(self.box, 0.45))
                self.plate(back * long, 0.22 * high, 0.27 * high, -1, 1, (190.0, 30.0, 30.0))
            self.side(
                [
                    (back * long, 0.2 * high),
                    (back * long, 0.27 * high),
                    (front * long, 0.27 * high),
                    (front * long, 0.2 * high),
                ],
                (35.0, 35.0, 38.0),
                True,
            )

        first, second = (cabin, load) if self.ground(long / 2, 0)[1] > self.ground(-long / 2, 0)[1] else (load, cabin)
        first()
        second()
        self.wheels([-0.38 * long, -0.38 * long + 1.1, (split + cab * 0.4) * long], 0.5)
        self.lamps(0.21 * high if self.faces(-1.0, 0.0) else 0.24 * high, 0.16)

    def draw_bus(self) -> None:
        long, high = self.long, self.high
        end = -0.45 if self.faces(-1.0, 0.0) else 0.45
        self.feet([end * long], 0.6)
        shell = [(-0.5, 0.1), (-0.5, 0.97), (-0.48, 1.0), (0.48, 1.0), (0.5, 0.96), (0.5, 0.1)]
        self.extrude(shell, "errre", self.tone)
        self.side(
            [
                (-long / 2, 0.12 * high),
                (-long / 2, self.stripe * high),
                (long / 2, self.stripe * high),
                (long / 2, 0.12 * high),
            ],
            self.trim,
        )
        self.side(
            [
                (-0.48 * long, 0.46 * high),
                (-0.48 * long, 0.84 * high),
                (0.49 * long, 0.84 * high),
                (0.49 * long, 0.46 * high),
            ],
            self.glass,
        )
        bays = max(4, round(long / 1.6))
        for n in range(1, bays):
            u = (-0.48 + 0.97 * n / bays) * long
            self.side(
                [(u - 0.06, 0.46 * high), (u - 0.06, 0.84 * high), (u + 0.06, 0.84 * high), (u + 0.06, 0.46 * high)],
                self.tone,
            )
        for share in (0.38, -0.06):  # doors
            u = share * long
            self.side(
                [(u, 0.13 * high), (u, 0.84 * high), (u + 1.1, 0.84 * high), (u + 1.1, 0.13 * high)],
                _times(self.glass, 0.7),
            )
        if self.faces(1.0, 0.0):
            u = long / 2
            self.plate(u, 0.4 * high, 0.82 * high, -0.92, 0.92, self.glass)
            self.plate(u, 0.85 * high, 0.95 * high, -0.7, 0.7, (20.0, 20.0, 20.0))
            self.plate(u, 0.875 * high, 0.925 * high, -0.5, 0.4, (255.0, 170.0, 40.0), True)
            self.plate(u, 0.12 * high, 0.18 * high, -1, 1, self.trim)
        elif self.faces(-1.0, 0.0):
            self.plate(-long / 2, 0.52 * high, 0.82 * high, -0.8, 0.8, self.glass)
            self.plate(-long / 2, 0.3 * high, 0.42 * high, -0.55, 0.55, _times(self.tone, 0.4))
            self.plate(-long / 2, 0.12 * high, 0.18 * high, -1, 1, self.trim)
        self.wheels([-0.3 * long, 0.29 * long], 0.5)
        self.lamps(0.25 * high, 0.2)

    def draw_train(self) -> None:
        """A tram: long, wheels behind skirts, several cars, a slanted dark nose and a current collector."""
        long, high, cv = self.long, self.high, self.street.cv
        k = self.street.focal / max(self.z, 6.0)
        for u, v0, v1 in ((0.02, 1.0, 1.22), (0.07, 1.22, 1.0)):
            cv.bar(
                self.at(u * long - 0.05 * long, v0 * high, 0),
                self.at(u * long, v1 * high, 0),
                max(2.0, 0.08 * k),
                (40.0, 40.0, 44.0),
                self.obj,
            )
        nose = 1.2 / long
        self.extrude(
            [
                (-0.5, 0.04),
                (-0.5, 0.4),
                (-0.5 + nose, 0.97),
                (-0.5 + 1.5 * nose, 1.0),
                (0.5 - 1.5 * nose, 1.0),
                (0.5 - nose, 0.97),
                (0.5, 0.4),
                (0.5, 0.04),
            ],
            "egrrrge",
            self.tone,
        )
        a, b = (-0.5 + nose) * long, (0.5 - nose) * long
        self.side(
            [(-long / 2, 0.05 * high), (-long / 2, 0.16 * high), (long / 2, 0.16 * high), (long / 2, 0.05 * high)],
            _times(self.trim, 0.5),
        )
        self.side(
            [(-long / 2, 0.3 * high), (-long / 2, 0.4 * high), (long / 2, 0.4 * high), (long / 2, 0.3 * high)],
            self.trim,
        )
        self.side(
            [(a + 0.5, 0.46 * high), (a + 0.5, 0.8 * high), (b - 0.5, 0.8 * high), (b - 0.5, 0.46 * high)], self.glass
        )
        self.side([(a, 0.9 * high), (a, 0.97 * high), (b, 0.97 * high), (b, 0.9 * high)], self.trim)
        cars = max(2, round(long / 7.5))
        for n in range(cars):
            start = -0.5 + n / cars
            if n:  # bellows between the cars
                u = start * long
                self.side(
                    [(u - 0.3, 0.05 * high), (u - 0.3, high), (u + 0.3, high), (u + 0.3, 0.05 * high)],
                    (30.0, 30.0, 32.0),
                )
            u = (start + 0.5 / cars) * long
            self.side(
                [(u - 0.7, 0.1 * high), (u - 0.7, 0.84 * high), (u + 0.7, 0.84 * high), (u + 0.7, 0.1 * high)],
                _mix(self.tone, (255.0, 255.0, 255.0), 0.35),
            )
            for w in (-0.6, 0.05):
                self.side(
                    [
                        (u + w, 0.16 * high),
                        (u + w, 0.8 * high),
                        (u + w + 0.55, 0.8 * high),
                        (u + w + 0.55, 0.16 * high),
                    ],
                    self.glass,
                )
        for end in (-1.0, 1.0):
            if self.faces(end, 0.0):
                u = end * long / 2
                self.plate(u, 0.04 * high, 0.12 * high, -1, 1, (30.0, 30.0, 32.0))
                self.plate(u, 0.3 * high, 0.38 * high, -1, 1, self.trim)
                self.plate(u - end * 1.0, 0.86 * high, 0.94 * high, -0.45, 0.45, (255.0, 180.0, 60.0), True)
        self.lamps(0.22 * high, 0.18)
