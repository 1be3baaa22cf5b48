"""The published protocol of the localisation metrics, step by step, in numpy and OpenCV.

The oracle of the metrics' tests and the other side of `experiments/performance/metrics.py`. Written
from the definitions in arXiv 2001.07437 and 2007.04178, one image and one threshold after the
other. Values are fractions. At the end: maps of every kind to compare on.
"""

import cv2
import numpy as np

THRESHOLDS = np.arange(0, 1, 0.001)
EDGES = np.append(THRESHOLDS, [1, 2, 3])


# Pixels


def histograms(scores, masks, edges=EDGES):
    """Scores of foreground and of background pixels, binned in float64, summed over the images."""
    foreground, background = np.zeros((2, len(edges) - 1), dtype=np.int64)
    for score_map, mask in zip(scores, masks, strict=True):
        score_map = np.asarray(score_map, dtype=np.float64)
        foreground += np.histogram(score_map[np.asarray(mask) == 1], edges)[0]
        background += np.histogram(score_map[np.asarray(mask) == 0], edges)[0]
    return foreground, background


def pixel_counts(scores, masks, edges=EDGES):
    """TP, FP, FN, TN of `score >= t` at each t of `edges[:-1]`, from the highest down."""
    foreground, background = histograms(scores, masks, edges)
    tp, fp = np.cumsum(foreground[::-1]), np.cumsum(background[::-1])
    return tp, fp, foreground.sum() - tp, background.sum() - fp


def pxap(scores, masks, edges=EDGES):
    tp, fp, fn, _ = pixel_counts(scores, masks, edges)
    some = tp + fp > 0
    precision, recall = tp[some] / (tp + fp)[some], tp[some] / (tp + fn)[some]
    return (precision * np.diff(recall, prepend=0)).sum()


def pixel_curves(scores, masks, edges=EDGES):
    """Every quantity of the threshold curve, from the highest threshold down; masks need both."""
    tp, fp, fn, tn = pixel_counts(scores, masks, edges)
    ious = tp / (tp + fp + fn), tn / (tn + fp + fn)
    return {
        "threshold": edges[-2::-1],
        "precision": tp / np.maximum(tp + fp, 1),
        "tp_rate": tp / (tp + fn),
        "fn_rate": fn / (tp + fn),
        "tn_rate": tn / (tn + fp),
        "fp_rate": fp / (tn + fp),
        "dice_foreground": 2 * tp / (2 * tp + fp + fn),
        "dice_background": 2 * tn / (2 * tn + fp + fn),
        "iou_foreground": ious[0],
        "iou_background": ious[1],
        "miou": (ious[0] + ious[1]) / 2,
    }


def peak_iou(scores, masks):
    return pixel_curves(scores, masks)["iou_foreground"].max()


# Boxes


def to_levels(score_map):
    return np.floor(255 * np.asarray(score_map, dtype=np.float64)).astype(np.uint8)


def predicted_boxes(levels, cut, contours):
    """Boxes `(m, 4)` of the contours of `levels > cut`."""
    height, width = levels.shape
    _, binary = cv2.threshold(levels, cut, 255, cv2.THRESH_BINARY)
    found = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(found) == 0:
        return np.array([[0, 0, 0, 0]])
    if contours == "largest":
        found = [max(found, key=cv2.contourArea)]
    rectangles = [cv2.boundingRect(contour) for contour in found]
    return np.array(
        [(x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles]
    )


def best_iou(predicted, truth):
    """Highest IoU over all pairs of a predicted and a true box, both ends of a side inclusive."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = predicted.T[..., None], truth.T
    overlap = np.maximum(0, np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1)
    overlap = overlap * np.maximum(0, np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1)
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return (overlap / (areas - overlap)).max()


def truncated(boxes):
    return np.array([[int(side) for side in box] for box in boxes])


def level_ious(levels, boxes, contours, cuts=range(256)):
    """Best IoU of `levels > t` for each t of `cuts`."""
    truth = truncated(boxes)
    return np.array([best_iou(predicted_boxes(levels, int(t), contours), truth) for t in cuts])


def ious(score_map, boxes, contours, thresholds=THRESHOLDS):
    """Best IoU of one image at each threshold."""
    levels = to_levels(score_map)
    cuts = [int(threshold * levels.max()) for threshold in thresholds]
    return level_ious(levels, boxes, contours, cuts)


def data_set_ious(scores, boxes, contours, thresholds=THRESHOLDS):
    """`(N, thresholds)`; every image has a box."""
    return np.array(
        [ious(*image, contours, thresholds) for image in zip(scores, boxes, strict=True)]
    )


def box_accuracy(image_ious, iou, right=None):
    """Share of images localised (and of right class) at each threshold, from `data_set_ious`."""
    correct = image_ious >= iou
    if right is not None:
        correct = correct & np.asarray(right)[:, None]
    return correct.mean(axis=0)


def max_box_acc(scores, boxes):
    return box_accuracy(data_set_ious(scores, boxes, "largest"), 0.5).max()


def max_box_acc_v2(scores, boxes):
    image_ious = data_set_ious(scores, boxes, "all")
    return np.mean([box_accuracy(image_ious, iou).max() for iou in (0.3, 0.5, 0.7)])


def among_top(logits, label, k):
    """Whether each label is among the k highest logits; among equals, the lower class is first."""
    orders = [sorted(range(len(row)), key=lambda c, row=row: -row[c]) for row in logits]
    return [int(c) in order[:k] for c, order in zip(label, orders, strict=True)]


def topk_localization(image_ious, logits, label, k, iou=0.5):
    return box_accuracy(image_ious, iou, among_top(logits, label, k)).max()


def nearest(threshold):
    return abs(THRESHOLDS - threshold).argmin()


def corloc(image_ious, label, threshold, average):
    """CorLoc, and the rate of each class that occurs.

    Args:
        image_ious: As of `data_set_ious`.
        label: N classes.
        threshold: "global" is the first threshold of the best overall rate, "per_class" each
            class's own best, a number the nearest of the grid.
        average: "macro" is the mean over classes, "micro" over frames.
    """
    overall = box_accuracy(image_ious, 0.5)
    chosen = overall.argmax() if isinstance(threshold, str) else nearest(threshold)
    rates, hits = {}, 0
    for c in np.unique(label).tolist():
        curve = box_accuracy(image_ious[label == c], 0.5)
        rates[c] = curve.max() if threshold == "per_class" else curve[chosen]
        hits += round(rates[c] * (label == c).sum())
    return (np.mean(list(rates.values())) if average == "macro" else hits / len(label)), rates


# Maps to compare on


def rings(*radii, size=24, values=(0.9, 0.6, 0.4)):
    """Square rings, one pixel wide, around the centre."""
    y, x = np.mgrid[:size, :size]
    radius = np.maximum(abs(x - size // 2), abs(y - size // 2))
    out = np.zeros((size, size))
    for r, value in zip(radii, values, strict=False):
        out[radius == r] = value
    return out


def blobs(random, height, width, count=4):
    """Sum of Gaussians, min-max normalised: a smooth map with several modes."""
    y, x = np.mgrid[:height, :width]
    out = np.zeros((height, width))
    for _ in range(count):
        cy, cx, spread = random.random(3) * [height, width, max(height, width) / 4] + [0, 0, 1]
        out += random.random() * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2))
    return (out - out.min()) / max(np.ptp(out), 1e-12)


def stamped(random, height, width, shape, count):
    """Copies of one shape at random places, in few values: many equal polygon areas."""
    out = np.zeros((height, width))
    for _ in range(count):
        y = random.integers(0, height - shape.shape[0] + 1)
        x = random.integers(0, width - shape.shape[1] + 1)
        place = out[y : y + shape.shape[0], x : x + shape.shape[1]]
        place[shape > 0] = random.choice([0.3, 0.6, 1.0])
    return out


SHAPES = [
    np.ones((2, 2)),
    np.ones((3, 3)),
    np.ones((1, 4)),
    np.ones((4, 1)),
    np.eye(3),
    np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]),  # a ring whose hole has the same polygon area
    np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
    np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]]),  # no hole
    np.pad(np.pad(np.ones((1, 1)), 1), 1, constant_values=1),  # a pixel inside a ring
]

KINDS = [
    *("noise", "few levels", "smoothed", "checkerboard", "ring", "nested rings"),
    *("single pixels", "lines", "border", "constant 0", "constant 1"),
    *("tied shapes", "two levels", "diamonds", "several modes", "frame", "bytes"),
    *("row", "column", "tiny", "thin and long"),
]


def special_shape(kind, random):
    height, width = random.integers(8, 26, 2)
    if kind == "row":
        height = 1
    elif kind == "column":
        width = 1
    elif kind == "tiny":
        height, width = random.integers(1, 5, 2)
    elif kind == "thin and long":
        height, width = random.permutation([random.integers(2, 4), random.integers(260, 320)])
    return height, width


def special_map(kind, random, shape=None):
    """A random map `(H, W)` of one of `KINDS`, float64 in [0, 1]; rings are always 24 x 24."""
    height, width = shape or special_shape(kind, random)
    noise = random.random((height, width))
    if kind in ("noise", "thin and long"):
        return noise
    if kind in ("few levels", "row", "column", "tiny"):
        return random.choice([0.0, 0.1, 0.3, 0.5, 1.0], (height, width))
    if kind == "smoothed":
        return cv2.GaussianBlur(noise, (7, 7), 0)
    if kind == "checkerboard":
        return np.indices((height, width)).sum(0) % 2 * noise.clip(0.2)
    if kind == "ring":
        return rings(int(random.integers(2, 10)))
    if kind == "nested rings":
        return np.maximum(rings(3, 6, 9), 0.2 * random.random((24, 24)))
    if kind == "single pixels":
        return noise * (random.random((height, width)) < 0.05)
    if kind == "lines":
        out = np.zeros((height, width))
        out[height // 2], out[:, width // 3] = 0.8, 0.5
        np.fill_diagonal(out, 0.65)
        return out
    if kind == "border":
        out = 0.1 * noise
        out[: height // 2, : width // 2] += 0.5
        out[-3:, -4:] += 0.7
        return out
    if kind == "tied shapes":
        shape = SHAPES[random.integers(len(SHAPES))]
        return stamped(random, height, width, shape, int(random.integers(2, 9)))
    if kind == "two levels":  # near the density at which components merge: holes in holes
        return np.where(noise < random.uniform(0.3, 0.7), 0.4, 0.9) * (noise > 0.1)
    if kind == "diamonds":
        y, x = np.mgrid[:height, :width]
        cy, cx, period = random.integers([0, 0, 2], [height, width, 6])
        return ((abs(x - cx) + abs(y - cy)) % period == 0) * noise.clip(0.1).round(1)
    if kind == "several modes":
        return blobs(random, height, width)
    if kind == "frame":  # the only component touches the border all around
        out = np.pad(0.2 * noise[2:-2, 2:-2], 2, constant_values=0.7)
        out[random.integers(height), random.integers(width)] = 0
        return out
    if kind == "bytes":  # every level, scores on the edges between levels
        return random.integers(0, 256, (height, width)) / 255
    return np.full((height, width), {"constant 0": 0.0, "constant 1": 1.0}[kind])


def random_boxes(random, levels):
    """One to four true boxes `(n, 4)` in the map: those of contours, moved a little, and others."""
    height, width = levels.shape
    out = []
    for _ in range(random.integers(1, 5)):
        if random.random() < 0.6:
            contours = predicted_boxes(levels, int(random.integers(0, max(levels.max(), 1))), "all")
            x0, y0, x1, y1 = contours[random.integers(len(contours))] + random.integers(-1, 2, 4)
        else:
            x0, x1 = np.sort(random.uniform(0, width, 2))
            y0, y1 = np.sort(random.uniform(0, height, 2))
        out.append([x0, y0, max(x0, x1), max(y0, y1)])
    return np.clip(np.array(out, dtype=np.float64), 0, [width, height, width, height])
