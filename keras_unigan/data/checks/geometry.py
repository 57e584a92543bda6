"""Place and shape: headers of one file, and an image beside its label map."""

import nibabel as nib
import numpy as np

from keras_unigan.data import nifti

HALF_VOXEL = 0.499
"""Offset in voxels from which a shift is an error; just under the half for rounding."""
NOISE = 0.01
"""Offset in voxels of two affines of one file from which they disagree."""
_LONGEST, _SHORTEST = 2500.0, 5.0  # mm: the field of view of a scanner


def corner_offset(shape, affine, other):
    """How far apart two affines put the corners of a grid.

    Args:
        shape: Voxels (x, y, z).
        affine: Voxel index to mm, (4, 4); invertible.
        other: The other affine.

    Returns:
        Largest distance in mm, and the largest along one axis in voxels of `affine`.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1.0])).reshape(4, -1)
    offset = ((other - affine) @ corners)[:3]
    voxels = np.linalg.solve(affine[:3, :3], offset)
    return float(np.linalg.norm(offset, axis=0).max()), float(np.abs(voxels).max())


def shear_degrees(affine):
    """Largest departure of the angle between two axes from 90 degrees."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = unit.T @ unit - np.eye(3)
    return float(np.rad2deg(np.arcsin(np.clip(np.abs(cosine).max(), 0, 1))))


def header_findings(entry, volume, part):
    """Findings on the affine of one file: two affines, shear, spacing, units."""
    shear = shear_degrees(volume.affine)
    if shear > 0.1:
        yield entry.finding(
            "KUG-D21", "warning", f"axes {shear:.2f} degrees from a right angle", "right angles",
            "It is read and kept as it is; other tools may refuse it.", part=part,
        )  # fmt: skip
    header = volume.header
    if header is None:
        return
    yield from _two_affines(entry, volume, header, part)
    if not int(header["qform_code"]) and not int(header["sform_code"]):
        yield entry.finding(
            "KUG-D22", "warning", "no qform and no sform", "an affine to the patient's axes",
            "Left and right are a guess (the Analyze convention is assumed).",
            "convert the file again from its source with its orientation", part,
        )  # fmt: skip
    yield from _spacing(entry, volume, header, part)


def _two_affines(entry, volume, header, part):
    if not (int(header["qform_code"]) and int(header["sform_code"])):
        return
    fix = "copy the right one over the other (fslorient -copysform2qform or -copyqform2sform)"
    used = "The sform is used; both are kept on output."
    try:
        qform = header.get_qform()
        finite = np.isfinite(qform).all()
    except (nib.spatialimages.HeaderDataError, ValueError):
        finite = False
    if not finite:
        yield entry.finding(
            "KUG-D20", "warning", "a qform that is no rotation", "one place", used, fix, part
        )
        return
    mm, voxels = corner_offset(volume.shape, volume.affine, qform)
    if voxels > NOISE:
        level = "warning" if voxels > HALF_VOXEL else "info"
        found = f"qform and sform {mm:.3g} mm ({voxels:.2g} voxels) apart"
        yield entry.finding("KUG-D20", level, found, "one place", used, fix, part)


def _spacing(entry, volume, header, part):
    shown = tuple(round(s, 4) for s in volume.spacing)
    stated = np.array(header["pixdim"][1:4], float)[: int(header["dim"][0])]
    used = np.array(volume.spacing)[: len(stated)]
    if (np.abs(stated - used) > 0.01 * used).any():
        yield entry.finding(
            "KUG-D22", "warning",
            f"pixdim {tuple(round(float(s), 4) for s in stated)}", f"{shown} mm as in the affine",
            "The affine is used; tools that read pixdim see other sizes.",
            "write the right spacing into the header", part,
        )  # fmt: skip
    unit = int(header["xyzt_units"]) & 7
    extent = max(n * s for n, s in zip(volume.shape, volume.spacing, strict=True))
    guess = None
    if unit in (1, 3):
        guess = "metres" if unit == 1 else "micrometres"
    elif extent > _LONGEST:
        guess = "micrometres"
    elif extent < _SHORTEST:
        guess = "metres" if extent < 1 else "centimetres"
    if guess:
        yield entry.finding(
            "KUG-D22", "warning", f"spacing {shown}, perhaps in {guess}", "millimetres",
            "All distances and the plan's grid are in mm.",
            "write the spacing in mm into the header", part,
        )  # fmt: skip
    elif np.array_equal(volume.affine, np.eye(4)) and part == "image":
        yield entry.finding(
            "KUG-D22", "info", "spacing 1, 1, 1 and no place (the identity)", "a scanner's affine",
            "Perhaps a tool lost the header.", "compare with the source", part,
        )  # fmt: skip


def pair_findings(entry, image, label):
    """Findings on the grids of an image and its label map, compared in RAS+."""
    image, label = nifti.to_ras(image), nifti.to_ras(label)
    if image.shape != label.shape:
        yield _other_shape(entry, image, label)
        return
    mm, voxels = corner_offset(image.shape, image.affine, label.affine)
    if voxels <= NOISE / 10:
        return
    spacing = max(abs(a - b) / a for a, b in zip(image.spacing, label.spacing, strict=True))
    found = f"the label map up to {mm:.3g} mm ({voxels:.2g} voxels) away from the image"
    if spacing > 0.01:
        found += (
            f", spacing {tuple(round(s, 4) for s in image.spacing)} and "
            f"{tuple(round(s, 4) for s in label.spacing)} mm"
        )
    if voxels > HALF_VOXEL:
        yield entry.finding(
            "KUG-D04", "error", found, "one place",
            "A label map in another place marks the wrong voxels.",
            "unigan check STUDY --fix DIR resamples a copy; where the voxels match, write the "
            "image's affine into the label file", "label",
        )  # fmt: skip
    elif voxels > 10 * NOISE:
        why = "Under half a voxel: used as it is."
        yield entry.finding("KUG-D04", "warning", found, "one place", why, part="label")
    else:
        yield entry.finding("KUG-D04", "info", found, "one place", "Rounding noise.", part="label")


def _other_shape(entry, image, label):
    kind = ""
    if sorted(image.shape) == sorted(label.shape):
        kind = ", the same sizes in another order (transposed?)"
    elif np.allclose(
        np.multiply(image.shape, image.spacing), np.multiply(label.shape, label.spacing), rtol=0.05
    ):
        kind = ", the same field of view (resampled?)"
    return entry.finding(
        "KUG-D03", "error", f"image {image.shape} and label map {label.shape} (RAS+ axes){kind}",
        "one shape", "A label map on another grid marks the wrong voxels.",
        "unigan check STUDY --fix DIR resamples a copy of the label map to the image's grid",
        "label",
    )  # fmt: skip
