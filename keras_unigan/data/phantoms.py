"""Synthetic studies of several modalities: for the demo, tests, notebooks and benchmarks.

A body holds an organ with a lesion. Its rim looks like the organ and blobs elsewhere look like the
lesion, so intensity alone does not segment; every modality has other contrast, and each volume has
its own orientation, obliquity and spacing. X-ray, ultrasound and microscopy are PNG pictures of one
slice, as a phantom of their kind would look, with a spacing that nobody knows. Stains are in
colour where all modalities of the study are stains, as a study has one number of channels.
"""

import itertools
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import nifti, pictures, splits

LABELS = Labels(classes={"organ": (1,), "lesion": (2,)})
"""Classes of every phantom study."""

# Mean intensity of body, organ and lesion: Hounsfield units, standardised uptake values, counts,
# grey values of 8 bits; else relative ones.
_LEVELS = {
    "ct": (30.0, 110.0, -60.0),
    "t1": (0.55, 0.9, 0.25),
    "flair": (0.55, 0.3, 0.95),
    "pet": (0.8, 2.4, 6.0),
    "spect": (8.0, 40.0, 90.0),
    "xray": (90.0, 150.0, 205.0),
    "ultrasound": (70.0, 130.0, 25.0),
    "microscopy": (200.0, 150.0, 90.0),
    "he": (205.0, 105.0, 160.0),
}
FLAT = ("xray", "ultrasound", "microscopy", "he")
"""Modalities whose phantoms are pictures."""
_AIR = {"ct": -1000.0, "microscopy": 240.0, "he": 240.0}

# Grey value -> red, green, blue: brown on blue, and violet on pink.
_STAINS = {
    "microscopy": {
        **{0: (0, 0, 0), 90: (95, 60, 45), 150: (165, 125, 100)},
        **{200: (205, 205, 225), 240: (242, 242, 243), 255: (255, 255, 255)},
    },
    "he": {
        **{0: (0, 0, 0), 105: (120, 60, 140), 160: (190, 110, 170)},
        **{205: (235, 185, 205), 240: (243, 241, 244), 255: (255, 255, 255)},
    },
}
STAINED = tuple(_STAINS)
"""Modalities whose phantoms may be in colour."""
_SPACINGS = ((1.0, 1.0, 2.0), (1.25, 1.25, 2.0), (1.0, 1.1, 2.4))


def _levels(modality):
    """Means of a modality; a name without an entry gets three levels in an order of its own."""
    if modality in _LEVELS:
        return _LEVELS[modality]
    orders = list(itertools.permutations((0.25, 0.55, 0.9)))
    return orders[zlib.crc32(modality.encode()) % len(orders)]


def _ellipsoid(grid, centre, radii):
    """Normalised distance from a centre: 1 on the surface."""
    return np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)))


def volume(seed, modality="t1", shape=(64, 64, 24)):
    """Makes one phantom on a RAS+ grid.

    Args:
        seed: Seed of anatomy and noise.
        modality: Decides the contrast. "ct" is in Hounsfield units with air of -1000, "pet" in
            standardised uptake values, "spect" in counts; those of `FLAT` have 8 bits. Any other
            has an arbitrary gain, a smooth bias field and a background of 0.
        shape: Voxels (x, y, z) of a field of view that does not depend on them.

    Returns:
        Image float32 and label map uint8 with the indices of `LABELS`.
    """
    rng = np.random.default_rng([seed, zlib.crc32(modality.encode())])
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    body_radii = rng.uniform((0.78, 0.66, 1.1), (0.88, 0.76, 1.3))
    body = _ellipsoid(grid, rng.uniform(-0.05, 0.05, 3), body_radii)
    side = rng.choice((-1.0, 1.0))
    centre = np.array([side * rng.uniform(0.1, 0.22), rng.uniform(-0.12, 0.12), 0.0])
    organ_radii = rng.uniform((0.3, 0.3, 0.7), (0.36, 0.38, 0.9))
    organ = _ellipsoid(grid, centre, organ_radii) < 1
    angle = rng.uniform(0, 2 * np.pi)
    place = centre + 0.08 * np.array([np.cos(angle), np.sin(angle), 0.0])
    lesion = _ellipsoid(grid, place, rng.uniform((0.14, 0.14, 0.35), (0.18, 0.18, 0.5))) < 1
    decoys = np.zeros(shape, bool)
    # A picture is of one height.
    for height in (0.0, 0.0) if modality in FLAT else (-0.6, -0.2, 0.2, 0.6):
        spot = [-side * rng.uniform(0.4, 0.48), rng.uniform(-0.15, 0.15), height]
        decoys |= _ellipsoid(grid, spot, rng.uniform((0.09, 0.09, 0.25), (0.13, 0.13, 0.4))) < 1
    inside = body < 1
    rim = inside & (body > 0.88)
    label_map = np.where(lesion, 2, np.where(organ, 1, 0)).astype(np.uint8)

    levels = np.array(_levels(modality))
    image = np.full(shape, levels[0])
    image[organ | rim] = levels[1]
    image[lesion | decoys] = levels[2]
    image = ndimage.gaussian_filter(image, 0.5)
    image = _acquire(rng, image, modality, grid)
    air = _AIR.get(modality, 0.0)
    return np.where(inside, image, air).astype(np.float32), label_map


def stain(image, modality):
    """Colours of a grey phantom.

    Args:
        image: Grey values of 8 bits, any shape.
        modality: One of `STAINED`.

    Returns:
        float64 of that shape, with red, green and blue in a last axis.
    """
    table = _STAINS[modality]
    colours = zip(*table.values(), strict=True)
    return np.stack([np.interp(image, list(table), colour) for colour in colours], axis=-1)


def _acquire(rng, image, modality, grid):
    """What a scanner of the modality makes of true intensities: its noise, scale and range."""
    spread = np.ptp(_levels(modality))
    if modality == "ct":
        return np.rint(image + rng.normal(0, 0.05 * spread, image.shape))
    if modality == "pet":
        # Noise of uptake grows with it, and the standardised value needs no gain.
        return np.maximum(image * (1 + rng.normal(0, 0.12, image.shape)), 0.01)
    if modality == "spect":
        return np.maximum(rng.poisson(image), 1.0)
    if modality == "ultrasound":
        speckle = image * (1 + rng.normal(0, 0.18, image.shape))
        return np.rint(np.clip(speckle, 1, 255))
    if modality in FLAT:
        exposure = rng.uniform(0.85, 1.1)
        noisy = exposure * image + rng.normal(0, 0.05 * spread, image.shape)
        return np.rint(np.clip(noisy, 1, 255))
    slope = sum(rng.uniform(-0.1, 0.1) * g for g in grid)
    image = (image + rng.normal(0, 0.05 * spread, image.shape)) * np.exp(slope)
    return np.maximum(image, 0.01) * rng.uniform(200, 2000)


def _native_grid(rng, shape, spacing):
    """RAS+ affine, turned by up to 15 degrees, and a random orientation of the stored axes."""
    axis = rng.normal(size=3)
    turn = nib.quaternions.angle_axis2mat(np.deg2rad(rng.uniform(3, 15)), axis)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-80, 80, 3) - affine[:3, :3] @ (np.array(shape) / 2)
    order = rng.permutation(3)
    flips = rng.choice((-1, 1), 3)
    return affine, np.stack([order, flips], axis=1)


def _write_volume(folder, subject, modality, rng, seed, sizes, spacing, channels):
    """Writes a volume and its label map; returns their names."""
    extent = (sizes[0], sizes[1], 2.0 * sizes[2])
    shape = tuple(max(1, round(e / s)) for e, s in zip(extent, spacing, strict=True))
    image, label_map = volume(seed, modality, shape)
    affine, orientation = _native_grid(rng, shape, spacing)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    if modality in ("ct", "spect"):
        image = image.astype(np.int16)
    names = {"image": f"{subject}_{modality}.nii.gz", "label": f"{subject}_seg.nii.gz"}
    for name, array in ((names["image"], image), (names["label"], label_map)):
        turned = nib.apply_orientation(array, orientation)
        nifti.write(folder / name, turned, affine=affine)
    return names


def _write_picture(folder, subject, modality, rng, seed, sizes, spacing, channels):
    """Writes a picture and its label map; returns their names."""
    shape = tuple(round(n / s) for n, s in zip(sizes[:2], spacing, strict=False))
    image, label_map = volume(seed, modality, (*shape, 1))
    if channels > 1:
        image = np.rint(stain(image, modality))
    names = {"image": f"{subject}_{modality}.png", "label": f"{subject}_seg.png"}
    for name, array in ((names["image"], image), (names["label"], label_map)):
        # Pictures run to the left and to the back.
        pictures.write(folder / name, array[::-1, ::-1].astype(np.uint8))
    return names


def write_study(
    folder,
    modalities=("ct", "t1", "flair"),
    subjects_per_modality=6,
    size=64,
    depth=24,
    seed=0,
    fractions=(0.6, 0.2, 0.2),
):
    """Writes phantom files, their label maps and `study.json` with splits.

    Every subject has one modality: `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`, the
    plain layout that `readers` read; of the modalities in `FLAT` both are `.png`. Affines are
    oblique and anisotropic; axes are permuted and flipped. The field of view is size x size x 2
    depth mm. Pictures are in colour, and the study has 3 channels, where all are in `STAINED`.

    Args:
        folder: Where to; made if missing.
        modalities: Lower-case names.
        subjects_per_modality: Subjects of each modality.
        size: Voxels along x and y at 1 mm.
        depth: Voxels along z at 2 mm.
        seed: Seed of everything.
        fractions: Shares of train, val and test subjects.

    Returns:
        `config.Study`, as in `study.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases, channels = [], 3 if set(modalities) <= set(STAINED) else 1
    for number in range(subjects_per_modality * len(modalities)):
        modality = modalities[number % len(modalities)]
        subject = f"phantom{number + 1:03d}"
        rng = np.random.default_rng([seed, number])
        write = _write_picture if modality in FLAT else _write_volume
        spacing = _SPACINGS[number // len(modalities) % len(_SPACINGS)]
        names = write(
            *(folder, subject, modality, rng, seed * 100_000 + number, (size, size, depth)),
            *(spacing, channels),
        )
        cases.append(Case(subject=subject, modality=modality, **names))
    head = ("phantoms", tuple(modalities), LABELS, tuple(cases))
    study = Study(*head, folder=str(folder), channels=channels)
    study = splits.split(study, fractions, seed)
    study.save(folder / "study.json")
    return study
