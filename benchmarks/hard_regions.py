"""Dice and HD95 where segmentation is hard: phantoms spoilt bit by bit, real cases by contrast.

`train` trains systems on phantoms at one budget, `phantoms` scores runs on phantoms that are spoilt
in one way at a time, `real` scores runs on a study and bins its cases by the contrast at the true
boundary; both add JSON lines. `table` prints them as Markdown. The label maps stay as they are.
"""

import argparse
import collections
import json
import statistics
from pathlib import Path

import comparing
import numpy as np
from scipy import ndimage

from keras_unigan import evaluation, inference
from keras_unigan.aggregation import summarize
from keras_unigan.config import Experiment, Study, TrainOptions
from keras_unigan.data import nifti, phantoms

ROWS = Path(__file__).parent / "hard_regions.jsonl"
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
MODALITIES = ("ct", "t1", "flair")
SHAPE, SPACING = (64, 64, 24), (1.0, 1.0, 2.0)
# Of phantoms to score: far from those of any study, so that none was trained on.
SEED = 7_000_000
BINS = ("low", "middle", "high")
# Score of a cell -> digits.
SHOWN = {"dice": 3, "hd95": 1}


def boundary(image, labels, severity, rng):
    """Smears up to 80 % of the organ's outline: one sector, the same in every slice."""
    organ = labels > 0
    x, y = np.meshgrid(*(np.arange(n) for n in image.shape[:2]), indexing="ij")
    centre = ndimage.center_of_mass(organ)
    turn = np.arctan2(y - centre[1], x - centre[0]) + rng.uniform(0, 2 * np.pi)
    sector = np.mod(turn, 2 * np.pi) < 0.8 * severity * 2 * np.pi
    # To the outline, from either side.
    depth = ndimage.distance_transform_edt(organ) + ndimage.distance_transform_edt(~organ)
    # Full inside the band, fading out, so that the band is no edge of its own.
    weight = np.clip(2 - depth / 4, 0, 1) * sector[..., None]
    smooth = ndimage.gaussian_filter(image, (6, 6, 1))
    grain = image - ndimage.gaussian_filter(image, (1, 1, 0))
    return image + weight * (smooth + grain - image)


def contrast(image, labels, severity, rng):
    """Moves organ and lesion to the level of the body around them."""
    result = image.astype(float).copy()
    body = (labels == 0) & (image > air(image))
    near = body & ndimage.binary_dilation(labels > 0, iterations=6)
    for value in (1, 2):
        inside = labels == value
        if inside.any() and near.any():
            result[inside] += severity * (np.median(image[near]) - np.median(image[inside]))
    return result


def background(image, labels, severity, rng):
    """Puts up to 16 blobs of organ and lesion intensity into the background."""
    result, far = image.astype(float).copy(), ndimage.distance_transform_edt(labels == 0) > 5
    places = np.argwhere(far & (image > air(image)))
    grids = np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij", sparse=True)
    for number in range(round(16 * severity)):
        centre, radii = places[rng.integers(len(places))], rng.uniform((3, 3, 2), (6, 6, 4))
        away = sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True))
        like = image[labels == 1 + number % 2]
        blob = (away < 1) & far & (image > air(image))
        result[blob] = rng.choice(like, np.count_nonzero(blob))
    return result


def bias(image, labels, severity, rng):
    """Multiplies by a smooth field between exp(-severity) and exp(severity)."""
    axes = [np.linspace(-1, 1, n) for n in image.shape]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    weights = rng.normal(size=3)
    field = sum(w * g for w, g in zip(weights, grids, strict=True)) / np.abs(weights).sum()
    return air(image) + (image - air(image)) * np.exp(severity * field)


def noise(image, labels, severity, rng):
    """Adds Gaussian noise of up to the distance between organ and body."""
    body = image[(labels == 0) & (image > air(image))]
    spread = abs(np.median(image[labels == 1]) - np.median(body))
    spoilt = image + rng.normal(0, severity * spread, image.shape)
    return np.where(image > air(image), spoilt, image)


def ghosting(image, labels, severity, rng):
    """Adds two shifted copies along y, of up to 40 % each, as motion while encoding phases does."""
    signal, step = image - air(image), image.shape[1] // 4
    copies = np.roll(signal, step, axis=1) + np.roll(signal, -step, axis=1)
    return image + 0.4 * severity * copies


def missing(image, labels, severity, rng):
    """Blanks up to half of the slices that hold the organ."""
    result, slices = image.astype(float).copy(), np.flatnonzero((labels > 0).any((0, 1)))
    lost = rng.permutation(slices)[: round(0.5 * severity * len(slices))]
    result[..., lost] = air(image)
    return result


def air(image):
    """Value around the body."""
    return float(image.min())


DEGRADATIONS = {
    "boundary erased": boundary,
    "foreground contrast": contrast,
    "confusing background": background,
    "bias field": bias,
    "noise": noise,
    "ghosting": ghosting,
    "missing slices": missing,
}


def degraded(name, image, labels, severity, seed):
    """One phantom spoilt; at severity 0 it is as it was.

    Args:
        name: Key of `DEGRADATIONS`.
        image: `(x, y, z)`.
        labels: Label map of the phantom.
        severity: 0 to 1.
        seed: Of what is drawn: the same places at every severity.
    """
    rng = np.random.default_rng(seed)
    return DEGRADATIONS[name](image, labels, severity, rng).astype(np.float32)


def score_phantom(predictor, image, labels, modality):
    """Rows of one phantom."""
    plan, volume = predictor.plan, nifti.Volume(image, np.diag([*SPACING, 1.0]))
    _, probabilities = inference.segment_volume(
        volume, plan, predictor, modality, predictor.spatial_dims
    )
    truth = evaluation.true_masks(labels, plan.labels)
    predicted = evaluation.predicted_masks(probabilities, plan.labels)
    found = evaluation.score_masks(truth, predicted, plan.labels.foreground, SPACING)
    return [{**row, "modality": modality, "seconds": 0.0} for row in found]


def line_of(summary):
    """Numbers of a summary that are kept."""
    means = {s: summary[f"macro_{s}"] for s in ("dice", "hd95", "assd", "nsd")}
    counts = {key: summary[key] for key in ("cases", "undefined")}
    each = {m: round(found["dice"], 4) for m, found in summary["modalities"].items()}
    missed = sum(line["missed"] for line in summary["table"])
    return {**comparing.rounded(means), **counts, "missed": missed, "dice_of": each}


def run_phantoms(options):
    """Adds a line for each run, way of spoiling and severity."""
    done = {
        (r["run"], r["degradation"], r["severity"], r["subjects"])
        for r in comparing.read_rows(options.rows)
        if r["kind"] == "phantom"
    }
    for name, folder in options.runs.items():
        predictor = inference.load(folder)
        if predictor.plan.labels != phantoms.LABELS:
            raise SystemExit(f"{folder} was not trained on phantoms")
        for way in options.ways:
            for severity in SEVERITIES:
                if (name, way, severity, options.subjects) in done:
                    continue
                rows = []
                for modality in predictor.plan.modalities:
                    for subject in range(options.subjects):
                        image, labels = phantoms.volume(SEED + subject, modality, SHAPE)
                        spoilt = degraded(way, image, labels, severity, SEED + subject)
                        rows += score_phantom(predictor, spoilt, labels, modality)
                head = {"kind": "phantom", "run": name, "degradation": way, "severity": severity}
                head["subjects"] = options.subjects
                comparing.add_row(options.rows, {**head, **line_of(summarize(rows))})


def boundary_contrast(image, mask):
    """Difference across a true boundary in noise units, two voxels to each side.

    Returns:
        |mean inside - mean outside| over the pooled standard deviation; NaN for an empty mask.
    """
    inside = mask & ~ndimage.binary_erosion(mask, iterations=2)
    outside = ndimage.binary_dilation(mask, iterations=2) & ~mask
    if not inside.any() or not outside.any():
        return float("nan")
    near, far = image[inside], image[outside]
    spread = np.sqrt((near.var() + far.var()) / 2)
    return float(abs(near.mean() - far.mean()) / max(spread, 1e-6))


def run_real(options):
    """Adds a line for each run and third of the cases by contrast, of each modality and name."""
    study = Study.load(options.study)
    for name, folder in options.runs.items():
        found, unusable = collections.defaultdict(list), 0
        for scored in evaluation.score_cases(folder, study, options.split, limit=options.limit):
            if scored.image is None:  # its contrast is not known, so it has no bin
                unusable += 1
                continue
            image = np.asarray(scored.image.array, np.float32)
            image = image.mean(axis=-1) if image.ndim > 3 else image
            for row, mask in zip(scored.rows, scored.truth, strict=True):
                if mask.any():
                    sharp = boundary_contrast(image, mask)
                    found[row["modality"], row["name"]].append((sharp, row))
        binned = collections.defaultdict(list)
        for members in found.values():
            # Thirds of one modality and name: contrast of CT and MR does not compare. Of fewer
            # cases than bins there are none.
            if len(members) < len(BINS):
                continue
            members.sort(key=lambda pair: pair[0])
            for place, pair in enumerate(members):
                binned[BINS[place * len(BINS) // len(members)]].append(pair)
        for bin_name in BINS:
            if binned[bin_name]:
                sharp, rows = zip(*binned[bin_name], strict=True)
                head = {"kind": "real", "run": name, "study": study.name, "contrast": bin_name}
                head |= {"median_contrast": round(statistics.median(sharp), 3), "n": len(rows)}
                head["unusable"] = unusable
                comparing.add_row(options.rows, {**head, **line_of(summarize(list(rows)))})


def train(options):
    """Trains the systems on one phantom study, each to the end of its budget."""
    from keras_unigan.pipelines import preprocess

    work = Path(options.work)
    study, shards = work / "study" / "study.json", work / "shards"
    if not study.is_file():
        phantoms.write_study(work / "study", MODALITIES, subjects_per_modality=10, seed=1)
    if not (shards / "shards.json").is_file():
        preprocess.run(["--study", str(study), "--output", str(shards), "--overwrite"])
    for system in options.systems:
        options_of = TrainOptions(batch_size=8, steps_per_epoch=min(100, options.steps))
        experiment = Experiment(
            shards=str(shards),
            output=str(work / "runs" / system),
            model=system,
            seed=options.seed,
            steps=options.steps,
            train=options_of,
            network={"filters": options.filters},
        )
        seconds = comparing.train(experiment, options.quiet)
        print(json.dumps({"trained": system, "seconds": round(seconds)}), flush=True)


def table(options):
    """Prints Markdown tables: Dice and HD95 against severity, and by contrast."""
    rows = comparing.read_rows(options.rows)
    for way in DEGRADATIONS:
        own = [r for r in rows if r["kind"] == "phantom" and r["degradation"] == way]
        if own:
            heads = [f"{severity:g}" for severity in SEVERITIES]
            print(f"\n### {way}: Dice / HD95 mm\n\n| run | {' | '.join(heads)} |")
            print(f"|---|{'---|' * len(heads)}")
            for name in dict.fromkeys(r["run"] for r in own):
                at = {r["severity"]: r for r in own if r["run"] == name}
                cells = [text_of(at.get(severity)) for severity in SEVERITIES]
                print(f"| {name} | {' | '.join(cells)} |")
    own = [r for r in rows if r["kind"] == "real"]
    if own:
        print(f"\n### Real cases by contrast: Dice / HD95 mm\n\n| run | {' | '.join(BINS)} |")
        print(f"|---|{'---|' * len(BINS)}")
        for name in dict.fromkeys(r["run"] for r in own):
            at = {r["contrast"]: r for r in own if r["run"] == name}
            print(f"| {name} | {' | '.join(text_of(at.get(b)) for b in BINS)} |")


def text_of(row):
    """Dice and HD95 of a line."""
    if row is None:
        return ""
    return " / ".join("–" if row[s] is None else f"{row[s]:.{d}f}" for s, d in SHOWN.items())


def runs_of(text):
    """`name=folder;name=folder` -> {name: folder}."""
    return dict(pair.split("=", 1) for pair in text.split(";"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "phantoms", "real", "table"))
    parser.add_argument("--runs", type=runs_of, default={}, help="name=RUN;name=RUN")
    parser.add_argument("--rows", default=str(ROWS))
    parser.add_argument("--subjects", type=int, default=4, help="phantoms of each modality")
    ways = list(DEGRADATIONS)
    parser.add_argument("--ways", type=lambda s: s.split(";"), default=ways, help="; between")
    parser.add_argument("--study", help="real: study.json that the runs were trained on")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--work", default="hard_regions")
    systems = ["joint", "segan", "unigan"]
    parser.add_argument("--systems", type=lambda s: s.split(";"), default=systems)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    actions = {"train": train, "phantoms": run_phantoms, "real": run_real, "table": table}
    actions[options.action](options)


if __name__ == "__main__":
    main()
