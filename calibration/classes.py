"""Classes, label maps and colours of the datasets, as their owners define them."""

from __future__ import annotations

import numpy as np

from edgekit.core.values import IGNORE, ClassSet, UInt8

# cityscapesscripts/helpers/labels.py: (name, id, trainId, category, colour) of the 19 evaluated classes.
_CITYSCAPES = (
    ("road", 7, "flat", (128, 64, 128)),
    ("sidewalk", 8, "flat", (244, 35, 232)),
    ("building", 11, "construction", (70, 70, 70)),
    ("wall", 12, "construction", (102, 102, 156)),
    ("fence", 13, "construction", (190, 153, 153)),
    ("pole", 17, "object", (153, 153, 153)),
    ("traffic light", 19, "object", (250, 170, 30)),
    ("traffic sign", 20, "object", (220, 220, 0)),
    ("vegetation", 21, "nature", (107, 142, 35)),
    ("terrain", 22, "nature", (152, 251, 152)),
    ("sky", 23, "sky", (70, 130, 180)),
    ("person", 24, "human", (220, 20, 60)),
    ("rider", 25, "human", (255, 0, 0)),
    ("car", 26, "vehicle", (0, 0, 142)),
    ("truck", 27, "vehicle", (0, 0, 70)),
    ("bus", 28, "vehicle", (0, 60, 100)),
    ("train", 31, "vehicle", (0, 80, 100)),
    ("motorcycle", 32, "vehicle", (0, 0, 230)),
    ("bicycle", 33, "vehicle", (119, 11, 32)),
)

# cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py, args.avgClassSize: pixels at 1024x2048.
_CITYSCAPES_INSTANCE_PIXELS = {
    "bicycle": 4672.3249222261,
    "motorcycle": 6298.7200839748,
    "rider": 3930.4788056518,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "car": 12794.0202738185,
    "person": 3462.4756337644,
    "truck": 27855.1264367816,
}

CITYSCAPES = ClassSet(
    names=tuple(name for name, _, _, _ in _CITYSCAPES),
    categories=tuple(category for _, _, category, _ in _CITYSCAPES),
    colours=tuple(colour for _, _, _, colour in _CITYSCAPES),
    instance_pixels=_CITYSCAPES_INSTANCE_PIXELS,
)

# SegNet's eleven CamVid classes; categories follow Cityscapes' grouping.
_CAMVID = (
    ("sky", "sky", (128, 128, 128)),
    ("building", "construction", (128, 0, 0)),
    ("pole", "object", (192, 192, 128)),
    ("road", "flat", (128, 64, 128)),
    ("pavement", "flat", (60, 40, 222)),
    ("tree", "nature", (128, 128, 0)),
    ("sign symbol", "object", (192, 128, 128)),
    ("fence", "construction", (64, 64, 128)),
    ("car", "vehicle", (64, 0, 128)),
    ("pedestrian", "human", (64, 64, 0)),
    ("bicyclist", "human", (0, 128, 192)),
)

CAMVID = ClassSet(
    names=tuple(name for name, _, _ in _CAMVID),
    categories=tuple(category for _, category, _ in _CAMVID),
    colours=tuple(colour for _, _, colour in _CAMVID),
)


def _table(pairs: dict[int, int]) -> UInt8:
    table = np.full(256, IGNORE, np.uint8)
    for label, train_id in pairs.items():
        table[label] = train_id
    return table


CITYSCAPES_LABEL_IDS = tuple(label for _, label, _, _ in _CITYSCAPES)
"""labelId of each train id."""

CITYSCAPES_MAP = _table({label: train_id for train_id, label in enumerate(CITYSCAPES_LABEL_IDS)})
"""uint8 [256]: labelId -> train id, 255 where not evaluated."""
CITYSCAPES_VALUES = frozenset({*range(34), IGNORE})
"""labelIds that a Cityscapes label image may hold; 255 is the licence plate's -1 in a byte, or void."""

CAMVID_MAP = _table({index: index for index in range(11)})
"""uint8 [256]: SegNet's value -> train id; 11 (unlabelled) -> 255."""
CAMVID_VALUES = frozenset({*range(12), IGNORE})
"""Values that a CamVid label image may hold; void is 11, or 255 as most tools save it."""
