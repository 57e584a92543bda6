"""What writers share: names, groups of images that belong together, files without loss."""

import collections
import dataclasses
import gzip
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from keras_unigan.config import Case
from keras_unigan.data.readers import common
from keras_unigan.errors import CodedError


@dataclasses.dataclass
class Written:
    """What a writer has put into its folder.

    Attributes:
        cases: Cases with the absolute paths of their new files, in the study's order.
        files: Image relative to the folder -> modalities of its channels, where the layout's own
            description says others.
        notes: Sentences on what other software will not take.
    """

    cases: list[Case]
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Group:
    """Cases of one subject and visit with one label map and one grid.

    Attributes:
        name: Unique in the study; letters, digits, `-` and `_`.
        cases: In the order of the study's modalities.
    """

    name: str
    cases: list[Case]

    @property
    def label(self):
        """Path of their label map, or None."""
        return self.cases[0].label

    @property
    def held_out(self):
        """Whether they belong with the test images: of split "test", or not labelled."""
        return self.cases[0].split == "test" or self.label is None


def located(study, every_kind=False):
    """The study with absolute paths.

    Args:
        study: `config.Study`.
        every_kind: Whether files may be of other kinds than NIfTI.

    Raises:
        CodedError: KUG-D08 for a URI, KUG-D10 for a file that is no NIfTI.
    """
    cases = []
    for case in study.cases:
        for name in (case.image, case.label):
            if name and "://" in name:
                raise CodedError("KUG-D08", case.id, "a URI", "a local file", fix="copy it here")
            if name and not every_kind and not common.stem(name):
                raise CodedError(
                    "KUG-D10",
                    case.id,
                    f"{Path(name).name}",
                    "a .nii or .nii.gz file",
                    "These layouts hold NIfTI files, which are copied byte by byte.",
                    "save it as NIfTI; --to csv takes files of every kind",
                )
        # Not resolved: what a link points to may have a name without ending.
        image, label = (n and os.path.abspath(study.path(n)) for n in (case.image, case.label))
        cases.append(dataclasses.replace(case, image=image, label=label))
    return dataclasses.replace(study, cases=tuple(cases))


def unique(names, pattern="[^A-Za-z0-9_-]", joint=""):
    """Safe name of each name, all different even where letter case is not told apart.

    Args:
        names: Texts in order; repeated ones count once.
        pattern: What may not stay.
        joint: What stands in its place.
    """
    result, used = {}, set()
    for name in dict.fromkeys(names):
        base = re.sub(pattern, joint, name) or "x"
        safe, number = base, 1
        while safe.lower() in used:
            number += 1
            safe = f"{base}{joint}{number}"
        used.add(safe.lower())
        result[name] = safe
    return result


def groups(study, signature):
    """Images that one entry of a layout can hold together.

    Args:
        study: `config.Study` with absolute paths.
        signature: Function of a case; cases with other values go to other groups.

    Returns:
        List of `Group` in the order of their first case.
    """
    members, visits = collections.defaultdict(list), collections.Counter()
    for case in study.cases:
        members[case.subject, case.visit, case.label, signature(case)].append(case)
    visits.update((key[0], key[1]) for key in members)
    names = []
    for key, cases in members.items():
        modality = cases[0].modality if visits[key[0], key[1]] > 1 else None
        names.append("_".join(p for p in (key[0], key[1], modality) if p))
    # Two different groups may give the same text (visit "1" of "a", subject "a_1").
    names = [f"{n}\0{i}" if names.index(n) != i else n for i, n in enumerate(names)]
    safe = unique(names, joint="-")
    rank = {m: i for i, m in enumerate(study.modalities)}
    return [
        Group(safe[name], sorted(cases, key=lambda c: rank[c.modality]))
        for name, cases in zip(names, members.values(), strict=True)
    ]


def grid(case):
    """Shape and affine of an image."""
    header = common.header(case.image)
    shape = (*header.get_data_shape(), 1)[:3]
    with np.errstate(all="ignore"):
        affine = np.array(header.get_best_affine(), np.float64)
    return tuple(int(n) for n in shape), affine.tobytes()


def stackable(case):
    """What images must share to lie in one 4-D file without loss; slices are never stacked."""
    header = common.header(case.image)
    if len(header.get_data_shape()) < 3:
        return case.id
    scale = tuple(float(header[key]) for key in ("scl_slope", "scl_inter"))
    places = (type(header), int(header["qform_code"]), int(header["sform_code"]))
    return (*grid(case), str(header.get_data_dtype()), repr(scale), *places)


def ending(path):
    """`.nii.gz` or `.nii`."""
    return next(e for e in common.ENDINGS if str(path).lower().endswith(e))


def put(source, target, channel=None):
    """Copies an image byte by byte, or one channel of it; compresses where the ending says so.

    Args:
        source: Local NIfTI file.
        target: New file; its folder is made.
        channel: Channel to take alone, or None.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if channel is not None:
        header, array = _raw(source)
        index = [slice(None)] * array.ndim
        axes = [axis for axis in range(3, array.ndim) if array.shape[axis] > 1]
        if len(axes) != 1 or channel >= array.shape[axes[0]]:
            raise CodedError(
                "KUG-D10", source, f"no channel {channel} in sizes {array.shape}", "that channel"
            )
        index[axes[0]] = channel
        _pack(target, _single(header, array[tuple(index)].reshape(array.shape[:3])))
    elif ending(source) == ending(target):
        shutil.copyfile(source, target)
    else:
        _pack(target, _unpacked(source))


def put_stack(cases, target):
    """Writes images of one signature (see `stackable`) as channels of one file, in their order."""
    whole = {c.image for c in cases}
    numbers = [c.channel for c in cases]
    if len(whole) == 1 and numbers == list(range(common.channels(cases[0].image))):
        put(cases[0].image, target)
        return
    arrays = []
    for case in cases:
        header, array = _raw(case.image)
        if case.channel is not None:
            array = np.squeeze(array, tuple(a for a in range(3, array.ndim) if array.shape[a] == 1))
            array = array[..., case.channel]
        arrays.append(array.reshape(array.shape[:3]))
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    _pack(Path(target), _single(header, np.stack(arrays, axis=-1)))


def _unpacked(path):
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _pack(target, data):
    # Without a time stamp the same image gives the same bytes.
    packed = gzip.compress(data, 6, mtime=0) if ending(target) == ".nii.gz" else data
    target.write_bytes(packed)


def _raw(path):
    """Header and voxels as they stand on disk, not scaled."""
    header = common.header(path)
    second = isinstance(header, nib.Nifti2Header)
    image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(_unpacked(path))
    return header, np.asarray(image.dataobj.get_unscaled())


def _single(header, array):
    """Bytes of a file with the header's geometry and scale around other voxels."""
    header = header.copy()
    header.set_data_shape(array.shape)
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    return header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F")


def class_names(study):
    """File value -> name; a value of several regions has their names joined by `+`."""
    values = collections.defaultdict(list)
    for name in study.labels.foreground:
        for value in study.labels.file_values(name):
            values[value].append(name)
    return {value: "+".join(values[value]) for value in sorted(values)}


def with_files(study, places):
    """Cases of a study with their new places.

    Args:
        study: `config.Study`.
        places: Case id -> (image, channel or None, label or None).
    """
    cases = []
    for case in study.cases:
        image, channel, label = places[case.id]
        label = None if label is None else str(label)
        cases.append(dataclasses.replace(case, image=str(image), label=label, channel=channel))
    return cases


def titled(study):
    """First entries of a `dataset.json`."""
    return {"name": study.name, "description": f"{study.name}, converted by keras_unigan"}
