"""How far other implementations agree with `keras_unigan.metrics`: the table of docs/metrics.md.

`python tests/metric_agreement.py` writes the table; it needs the [dev] extra and, for real label
maps, $UNIGAN_DATA. The tests compute it anew.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from keras_unigan import metrics
from keras_unigan.data import nifti

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
START, END = "<!-- agreement: made by tests/metric_agreement.py -->", "<!-- end of agreement -->"
TOLERANCE = 2.0
SPACINGS = ((1.0, 1.0, 1.0), (0.7, 1.3, 4.0))
# Dataset -> how many of its label maps.
REAL = {
    "hippocampus_t1_msd": 4,
    "prostate_mr_us_deepreg": 2,
    "vertebra_ct_mr_tptbox": 2,
    "brain_ms_4mod_lit": 1,
}
# What is compared; the order of the rows of the table.
ROWS = {
    "dice": "Dice",
    "iou": "IoU",
    "volume": "volume error, relative",
    "hd95_pooled": "HD95 `pooled`, mm",
    "hd95_max": "HD95 `max`, mm",
    "assd": "ASSD, mm",
    "assd_mean": "mean of the two directed means, mm",
    "nsd": f"NSD at {TOLERANCE:g} mm",
    "lesions": "connected components, difference of counts",
}
EXACT = {"SimpleITK": set(ROWS), "MedPy": {"dice", "iou", "volume", "hd95_pooled", "assd"}}
EXACT["surface-distance"] = {"dice"}


def ours(truth, prediction, spacing):
    """Scores of `keras_unigan.metrics`."""
    forward, backward = metrics.directed_distances(truth, prediction, spacing)
    lesions = metrics.lesion_scores(truth, prediction)
    return {
        "dice": metrics.dice(truth, prediction),
        "iou": metrics.iou(truth, prediction),
        "volume": metrics.volume_error(truth, prediction, spacing).relative,
        "hd95_pooled": metrics.hd95(truth, prediction, spacing),
        "hd95_max": metrics.hd95(truth, prediction, spacing, "max"),
        "assd": metrics.assd(truth, prediction, spacing),
        "assd_mean": (forward.mean() + backward.mean()) / 2,
        "nsd": metrics.nsd(truth, prediction, spacing, TOLERANCE),
        "lesions": lesions.true + lesions.predicted,
    }


def simpleitk(truth, prediction, spacing):
    """The same by ITK's filters: contours of labels, Maurer's distance map, components."""
    import SimpleITK as sitk

    def image(mask):
        # A margin: ITK draws no contour where a mask touches the edge of its image.
        found = sitk.GetImageFromArray(np.pad(mask, 1).T.astype(np.uint8))
        found.SetSpacing([float(s) for s in spacing])
        return found

    def distances(of, to):
        apart = sitk.SignedMaurerDistanceMap(
            to, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        # Inside a thick contour the distance is below 0.
        values = np.maximum(sitk.GetArrayFromImage(apart), 0)
        return values[sitk.GetArrayFromImage(of) > 0]

    masks = [image(truth), image(prediction)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*masks)
    contours = [sitk.LabelContour(mask, fullyConnected=False) for mask in masks]
    forward, backward = distances(*contours), distances(*contours[::-1])
    pooled = np.concatenate([forward, backward])
    counts = []
    for mask in masks:
        components = sitk.ConnectedComponentImageFilter()
        components.SetFullyConnected(True)
        components.Execute(mask)
        counts.append(components.GetObjectCount())
    sizes = [int(sitk.GetArrayFromImage(mask).sum()) for mask in masks]
    return {
        "dice": overlap.GetDiceCoefficient(),
        "iou": overlap.GetJaccardCoefficient(),
        "volume": sizes[1] / sizes[0] - 1,
        "hd95_pooled": np.percentile(pooled, 95),
        "hd95_max": max(np.percentile(forward, 95), np.percentile(backward, 95)),
        "assd": pooled.mean(),
        "assd_mean": (forward.mean() + backward.mean()) / 2,
        "nsd": np.mean(pooled <= TOLERANCE * (1 + 1e-6)),
        "lesions": sum(counts),
    }


def medpy(truth, prediction, spacing):
    """The same by MedPy."""
    from medpy.metric import binary

    return {
        "dice": binary.dc(prediction, truth),
        "iou": binary.jc(prediction, truth),
        "volume": binary.ravd(prediction, truth),
        "hd95_pooled": binary.hd95(prediction, truth, spacing),
        "assd": binary.assd(prediction, truth, spacing),
    }


def surface_distance(truth, prediction, spacing):
    """The same by surface-distance, whose surfaces run between voxels and weigh by area."""
    import surface_distance as other

    # Its lookup tables are for two or three axes; the margin closes surfaces at the edge.
    found = other.compute_surface_distances(np.pad(truth, 1), np.pad(prediction, 1), spacing)
    directed = other.compute_average_surface_distance(found)
    return {
        "dice": other.compute_dice_coefficient(truth, prediction),
        "hd95_max": other.compute_robust_hausdorff(found, 95),
        "assd_mean": float(np.mean(directed)),
        "nsd": other.compute_surface_dice_at_tolerance(found, TOLERANCE),
    }


OTHERS = {"SimpleITK": simpleitk, "MedPy": medpy, "surface-distance": surface_distance}


def random_pairs(count=24):
    """Smooth and salted random masks of two and three axes, even and uneven spacing."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shape = (22, 19, 13) if seed % 3 else (48, 37)
        field = rng.normal(size=shape)
        # From single voxels to a few bodies.
        truth = ndimage.gaussian_filter(field, seed % 4) > 0.0
        other = ndimage.gaussian_filter(field + 0.7 * rng.normal(size=shape), seed % 4) > 0.01
        yield truth, other, SPACINGS[seed % 2][: len(shape)]


def shapes():
    """Balls, boxes and a ring whose scores can be worked out; see test_metrics too."""
    for spacing in SPACINGS:
        axes = [np.arange(-14, 14.1, s) for s in spacing]
        x, y, z = np.meshgrid(*axes, indexing="ij")
        radius = np.sqrt(x**2 + y**2 + z**2)
        box = (abs(x) < 6) & (abs(y) < 7) & (abs(z) < 8)
        yield radius < 7, radius < 10, spacing
        yield radius < 8, np.sqrt((x - 3) ** 2 + y**2 + z**2) < 8, spacing
        yield box, radius < 9, spacing
        yield (radius < 10) & (radius > 6), radius < 10, spacing


def real_pairs(data):
    """Real label maps, every label as one mask, and what a segmentor might make of them."""
    with open(Path(data) / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    for dataset, count in REAL.items():
        labels = list(dict.fromkeys(r["label"] for r in rows if r["dataset"] == dataset))[:count]
        for number, label in enumerate(labels):
            volume = nifti.to_ras(nifti.read(Path(data) / label))
            truth = np.asarray(volume.array) > 0
            box = ndimage.find_objects(truth.astype(np.uint8))[0]
            truth = np.pad(truth[box], 3)
            noise = np.random.default_rng(number).normal(size=truth.shape)
            noise = ndimage.gaussian_filter(noise, 1.5)
            moved = ndimage.gaussian_filter(np.roll(truth, 1, number % 3).astype(float), 0.8)
            yield truth, moved + 0.15 * noise / noise.std() > 0.45, volume.spacing


def differences(pairs, others=OTHERS):
    """Largest difference of each score and implementation, and the number of pairs."""
    found: dict = {name: {} for name in others}
    count = 0
    for truth, prediction, spacing in pairs:
        count += 1
        own = ours(truth, prediction, spacing)
        for name, score in others.items():
            for key, value in score(truth, prediction, spacing).items():
                found[name][key] = max(found[name].get(key, 0.0), abs(own[key] - value))
    return found, count


def cell(value):
    """Text of a difference; "0" up to the rounding of single precision, in which ITK computes."""
    return "–" if value is None else "0" if value < 1e-5 else f"{value:.2g}"


def table(groups):
    """Markdown of the largest differences.

    Args:
        groups: Heading -> pairs.
    """
    lines = [f"| largest difference to | {' | '.join(OTHERS)} |", f"|---|{'---|' * len(OTHERS)}"]
    for heading, pairs in groups.items():
        found, count = differences(pairs)
        lines.append(f"| **{heading}: {count} pairs** |{' |' * len(OTHERS)}")
        for key, name in ROWS.items():
            cells = [cell(found[other].get(key)) for other in OTHERS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def committed():
    """The table in docs/metrics.md."""
    return PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].strip()


def section(text, heading):
    """Rows of one group of a table."""
    _, _, rest = text.partition(f"| **{heading}: ")
    return rest.split("| **")[0].strip()


def main():
    """Writes the table."""
    groups = {"random masks": random_pairs(), "analytic shapes": shapes()}
    data = os.environ.get("UNIGAN_DATA", PAGE.parents[2] / "shared" / "data")
    if not (Path(data) / "manifest.csv").is_file():
        sys.exit("no real label maps: set UNIGAN_DATA")
    groups["real label maps"] = real_pairs(data)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{table(groups)}\n{END}{after}", encoding="utf-8")
    print(f"Wrote {PAGE}")


if __name__ == "__main__":
    main()
