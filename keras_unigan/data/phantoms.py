"""Synthetic studies of several modalities: for the demo, tests, notebooks and benchmarks.

A body holds an organ with a lesion. Its rim looks like the organ and blobs elsewhere look like the
lesion, so intensity alone does not segment; every modality has other contrast, and each file has
its own orientation, obliquity and spacing. NumPy, SciPy and nibabel only.
"""

import itertools
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import nifti, splits

LABELS = Labels(classes={"organ": (1,), "lesion": (2,)})
"""Classes of every phantom study."""

# Mean intensity of body, organ and lesion; CT in Hounsfield units.
_LEVELS = {
    "ct": (30.0, 110.0, -60.0),
    "t1": (0.55, 0.9, 0.25),
    "flair": (0.55, 0.3, 0.95),
}
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
        modality: Decides the contrast; "ct" is in Hounsfield units with air of -1000, any other has
            an arbitrary gain, a smooth bias field and a background of 0.
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
    for height in (-0.6, -0.2, 0.2, 0.6):
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
    spread = np.ptp(levels)
    if modality == "ct":
        image = np.rint(image + rng.normal(0, 0.05 * spread, shape))
        return np.where(inside, image, -1000.0).astype(np.float32), label_map
    slope = sum(rng.uniform(-0.1, 0.1) * g for g in grid)
    image = (image + rng.normal(0, 0.05 * spread, shape)) * np.exp(slope)
    image = np.maximum(image, 0.01) * rng.uniform(200, 2000)
    return np.where(inside, image, 0.0).astype(np.float32), label_map


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
    plain layout that `cases` reads. Affines are oblique and anisotropic; axes are permuted and
    flipped. The field of view is size x size x 2 depth mm.

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
    cases = []
    for number in range(subjects_per_modality * len(modalities)):
        modality = modalities[number % len(modalities)]
        subject = f"phantom{number + 1:03d}"
        rng = np.random.default_rng([seed, number])
        spacing = _SPACINGS[number // len(modalities) % len(_SPACINGS)]
        extent = (size, size, 2.0 * depth)
        shape = tuple(max(1, round(e / s)) for e, s in zip(extent, spacing, strict=True))
        image, label_map = volume(seed * 100_000 + number, modality, shape)
        affine, orientation = _native_grid(rng, shape, spacing)
        affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
        if modality == "ct":
            image = image.astype(np.int16)
        names = {"image": f"{subject}_{modality}.nii.gz", "label": f"{subject}_seg.nii.gz"}
        for name, array in ((names["image"], image), (names["label"], label_map)):
            turned = nib.apply_orientation(array, orientation)
            nifti.write(folder / name, turned, affine=affine)
        cases.append(Case(subject=subject, modality=modality, **names))
    study = Study("phantoms", tuple(modalities), LABELS, tuple(cases), folder=str(folder))
    study = splits.split(study, fractions, seed)
    study.save(folder / "study.json")
    return study
