"""Where the images of a DICOM series lie: one `Plane` an image, stacked to one grid or refused.

DICOM counts its millimetres to the left, to the back and up (LPS); the affines here are RAS+. An
image without a place in the patient (X-ray, photograph) lies with its columns to the left and its
rows to the back, as ITK has it.
"""

import dataclasses

import numpy as np

from keras_unigan.errors import CodedError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
# Positions are text, often of two decimals: closer than this is the same, in mm.
_ROUNDING = 0.011


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """One image of a file.

    Attributes:
        file: Number of its file.
        frame: Number of its frame in the file.
        shape: (rows, columns).
        spacing: mm between rows and between columns; None where the file does not say.
        orientation: Unit vectors along a row and along a column, (2, 3) in LPS; None without.
        position: Centre of the first pixel, (3,) in LPS mm; None without.
        thickness: mm to a neighbour where there is none to measure; None where not said.
        localiser: Whether the file calls itself one.
    """

    file: int
    frame: int
    shape: tuple[int, int]
    spacing: tuple[float, float] | None = None
    orientation: np.ndarray | None = None
    position: np.ndarray | None = None
    thickness: float | None = None
    localiser: bool = False

    @property
    def placed(self):
        """Whether the image has a place in the patient."""
        return self.orientation is not None and self.position is not None

    @property
    def normal(self):
        """Unit vector from this image to the next one, LPS."""
        return np.cross(*self.orientation)


def functional_group(dataset, frame, name):
    """First item of a functional group of one frame, or of all frames; None without."""
    for sequence, number in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = dataset.get(sequence)
        if groups and number < len(groups) and groups[number].get(name):
            return groups[number].get(name)[0]
    return None


def planes_of(dataset, file=0):
    """All images of a file.

    Args:
        dataset: pydicom `Dataset`; pixels are not needed.
        file: What the planes call it.

    Returns:
        List of `Plane`, in the order of the frames.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    return [_plane(dataset, file, frame) for frame in range(frames)]


def _plane(dataset, file, frame):
    detector = (dataset.get("DetectorInformationSequence") or [None])[0]

    def find(group, *tags):
        for item in (functional_group(dataset, frame, group), dataset, detector):
            for tag in tags:
                if item is not None and item.get(tag) not in (None, "", []):
                    return np.array(item.get(tag), np.float64)
        return None

    image_type = [str(value).upper() for value in dataset.get("ImageType") or []]
    orientation = find("PlaneOrientationSequence", "ImageOrientationPatient")
    orientation = None if orientation is None else orientation.reshape(2, 3)
    position = find("PlanePositionSequence", "ImagePositionPatient")
    thickness = find("PixelMeasuresSequence", "SpacingBetweenSlices", "SliceThickness")
    own_place = functional_group(dataset, frame, "PlanePositionSequence") is not None
    if frame and position is not None and not own_place:
        # Only nuclear medicine says where its first slice lies and how far the others follow.
        tomographic = "RECON TOMO" in image_type and orientation is not None
        step = thickness if tomographic else None
        position = None if step is None else position + frame * step * np.cross(*orientation)
    spacing = find("PixelMeasuresSequence", *_SPACING_TAGS)
    return Plane(
        file=file,
        frame=frame,
        shape=(int(dataset.Rows), int(dataset.Columns)),
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        orientation=orientation,
        position=position,
        thickness=None if thickness is None else abs(float(thickness)),
        localiser="LOCALIZER" in image_type,
    )


def in_order(planes):
    """Planes in order along their normal, and the mm along it of each, (n,) ascending."""
    along = np.array([plane.position @ planes[0].normal for plane in planes])
    order = np.argsort(along, kind="stable")
    return [planes[i] for i in order], along[order]


def stack(planes, where):
    """Puts images in order and finds their common grid.

    Args:
        planes: `Plane`s of one series, at least one.
        where: What an error calls it.

    Returns:
        Planes in order, affine (4, 4) from (column, row, slice) to RAS+ mm, and whether the
        spacing is known.

    Raises:
        CodedError: KUG-D10 for several images without a place, or at the same one; KUG-D11 without
            pixel spacing; KUG-D31 for images of another grid among them; KUG-D32 for missing
            slices; KUG-D33 for unequal distances.
    """
    if not all(plane.placed for plane in planes):
        if len(planes) > 1:
            raise CodedError(
                "KUG-D10",
                where,
                f"{len(planes)} images of which some have no position",
                "one image, or slices with ImagePositionPatient",
                "Without positions nobody can tell views or moments from slices.",
                "give one file as one case, or name the channel (the frame's number)",
            )
        sizes = planes[0].spacing or (1.0, 1.0)
        grid = LPS_TO_RAS @ np.diag([sizes[1], sizes[0], planes[0].thickness or 1.0, 1.0])
        return planes, grid, planes[0].spacing is not None
    _check_grid(planes, where)
    planes, along = in_order(planes)
    _check_distances(along, where)
    first = planes[0]
    if len(planes) > 1:
        step = (planes[-1].position - first.position) / (len(planes) - 1)
        _check_line(planes, step, where)
    else:
        step = first.normal * (first.thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return planes, LPS_TO_RAS @ affine, True


def _same_grid(one, other):
    return (
        one.shape == other.shape
        and np.allclose(one.spacing, other.spacing, rtol=1e-3, atol=1e-4)
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=1e-3)
        and one.localiser == other.localiser
    )


def _check_grid(planes, where):
    if any(plane.spacing is None for plane in planes):
        raise CodedError("KUG-D11", where, "slices without PixelSpacing", "mm between pixels")
    groups = []
    for plane in planes:
        group = next((g for g in groups if _same_grid(g[0], plane)), None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
    if len(groups) > 1:
        groups.sort(key=len, reverse=True)
        kinds = [
            f"{len(g)} of {g[0].shape[0]} x {g[0].shape[1]} pixels across the direction "
            f"({', '.join(f'{v:.3f}' for v in g[0].normal)})"
            + (" that call themselves LOCALIZER" if g[0].localiser else "")
            for g in groups[:10]
        ]
        raise CodedError(
            "KUG-D31",
            where,
            f"images of {len(groups)} grids: {'; '.join(kinds)}",
            "slices of one size, spacing and orientation",
            "A localiser among the slices would be read as anatomy.",
            "move the files of the other grids to another folder",
        )


def _listed(texts, limit=10):
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more


def _check_distances(along, where):
    """Raises for repeated, missing and unequally spaced slices; `along` is ascending, in mm."""
    gaps = np.diff(along)
    same = np.flatnonzero(gaps < 1e-3)
    if same.size:
        raise CodedError(
            "KUG-D10",
            where,
            f"{len(along)} images at {len(along) - same.size} positions",
            "one image a position",
            "Echoes, phases, b-values or copies lie over each other.",
            "move each of them to a folder of its own",
        )
    if gaps.size < 2:
        return
    usual = float(np.median(gaps))
    tolerance = max(0.05 * usual, _ROUNDING)
    wrong = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if not wrong.size:
        return
    times = np.rint(gaps[wrong] / usual)
    if (times >= 2).all() and (np.abs(gaps[wrong] - times * usual) <= tolerance * times).all():
        texts = [
            f"{int(n) - 1} between {along[i]:g} and {along[i + 1]:g} mm (after slice {i + 1})"
            for i, n in zip(wrong, times, strict=True)
        ]
        raise CodedError(
            "KUG-D32",
            where,
            f"{int((times - 1).sum())} missing of {len(along) + int((times - 1).sum())} slices, "
            f"{usual:g} mm apart: {_listed(texts)}",
            "every slice",
            "The anatomy beyond the gap would be moved.",
            "export the series again, or leave the case out",
        )
    texts = [f"{gaps[i]:g} mm after slice {i + 1} (at {along[i]:g} mm)" for i in wrong]
    raise CodedError(
        "KUG-D33",
        where,
        f"{wrong.size} of {gaps.size} distances that differ from {usual:g} mm: {_listed(texts)}",
        "equal distances between slices",
        "A grid has one distance; organs would be stretched.",
        "resample the series to equal distances with the tool that made it",
    )


def _check_line(planes, step, where):
    expected = planes[0].position + np.arange(len(planes))[:, None] * step
    off = np.linalg.norm(np.stack([plane.position for plane in planes]) - expected, axis=1)
    if off.max() > max(0.05 * np.linalg.norm(step), 2 * _ROUNDING):
        worst = int(off.argmax())
        raise CodedError(
            "KUG-D33",
            where,
            f"slice {worst + 1} of {len(planes)} {off[worst]:.3g} mm off the line of the others",
            "slices in one line at equal distances",
            "A grid has straight edges; organs would be bent.",
            "export the series again, or leave the case out",
        )
