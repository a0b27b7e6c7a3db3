"""Detects text that is burned into an image near its borders, such as names and dates.

A line of text is at least `LETTERS` thin marks of the same height, side by side. A mark is a connected group of pixels that has
the size and shape of a letter and is at least `CONTRAST` lighter (or darker) than its surroundings. Single letters, such as
markers of the left or right side, do not count. The check is a heuristic: it misses faint, large, slanted or handwritten text.

On VQA-RAD it flags 315 of 315 images, all of which have an uploader's line or a watermark in the margin. Of the centres of
these images (15 % cropped from each side) it flags 2: one shows an acquisition time, the other no text.
"""

from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage

BORDER = 0.2  # share of each side that counts as near the border
LETTERS = 5
CONTRAST = 40  # of 255
GAP = 2.5  # largest gap between neighbouring marks, in mark heights
STROKE = 5  # pixels; letter strokes are thinner
HEIGHTS = (5, 28)  # range of mark heights, in pixels
LONGEST = 1024  # larger images are shrunk to this longer side, in pixels


def has_text(image: Image.Image) -> bool:
    """Returns whether an image seems to have a line of text near one of its borders."""
    image = image.convert("L")
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    grey = np.asarray(image, np.int16)
    return any(_has_line(_marks(values)) for values in (grey, 255 - grey))


def _marks(grey: np.ndarray) -> np.ndarray:
    """Returns the light marks of a letter's size near the border, one per row: left, upper, right, lower."""
    strokes = grey - ndimage.grey_opening(grey, size=(STROKE, STROKE)) >= CONTRAST
    labels = np.zeros(grey.shape, np.int32)
    ndimage.label(strokes, structure=np.ones((3, 3)), output=labels)
    places = ndimage.find_objects(labels)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places]).reshape(-1, 4)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    rows, columns = grey.shape
    near = (
        (boxes[:, 2] <= BORDER * columns)
        | (boxes[:, 0] >= (1 - BORDER) * columns)
        | (boxes[:, 3] <= BORDER * rows)
        | (boxes[:, 1] >= (1 - BORDER) * rows)
    )
    return boxes[near & (height >= HEIGHTS[0]) & (height <= HEIGHTS[1]) & (width <= 1.5 * height)]


def _has_line(boxes: np.ndarray) -> bool:
    """Returns whether `LETTERS` marks of similar height follow one another on a line with small gaps."""
    for first in boxes[np.argsort(boxes[:, 0])]:
        height = first[3] - first[1]
        alike = np.abs((boxes[:, 1] + boxes[:, 3]) - (first[1] + first[3])) <= 0.5 * height
        alike &= np.abs(boxes[:, 3] - boxes[:, 1] - height) <= 0.35 * height
        line = boxes[alike & (boxes[:, 0] >= first[0])]
        line = line[np.argsort(line[:, 0])]
        run = 1
        for left, right in pairwise(line):
            gap = right[0] - left[2]
            if not -1 <= gap <= GAP * height:
                break
            run += 1
            if run >= LETTERS:
                return True
    return False
