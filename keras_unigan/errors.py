"""Coded errors: what was found, what was expected, why it matters, and the command that helps.

A code is `KUG-` + D data, T training, S serving or E environment + two digits. Codes are stable: a
number is never given to another mistake.
"""

import difflib
import errno
import os

# code -> (title, exit code of the command line: 2 usage, 3 data, 4 environment or server)
CODES = {
    "KUG-D01": ("file or folder missing, or no images in it", 3),
    "KUG-D02": ("image without label, or label without image", 3),
    "KUG-D03": ("image and label differ in shape", 3),
    "KUG-D04": ("image and label differ in affine", 3),
    "KUG-D05": ("label values outside the study's map, or not whole numbers", 3),
    "KUG-D06": ("NaN or infinite voxels", 3),
    "KUG-D07": ("file cannot be read (truncated, not the format of its name)", 3),
    "KUG-D08": ("study, plan or manifest file is not valid", 3),
    "KUG-D09": ("shards damaged, of another plan or of another version", 3),
    "KUG-D10": ("number of axes or voxel type not supported", 3),
    "KUG-D11": ("spacing or affine unusable", 3),
    "KUG-D12": ("constant image", 3),
    "KUG-D13": ("the same case twice, or one subject in two splits", 3),
    "KUG-D14": ("no usable case for a modality or split", 3),
    "KUG-D15": ("a class missing in one of the modalities to translate between", 3),
    "KUG-D16": ("identifying text in a header, sidecar or file name", 3),
    "KUG-D17": ("volume smaller than the patch", 3),
    "KUG-D18": ("slices and volumes in one study", 3),
    "KUG-D20": ("qform and sform disagree", 3),
    "KUG-D21": ("axes not at right angles (sheared affine)", 3),
    "KUG-D22": ("spacing, unit or orientation looks wrong", 3),
    "KUG-D23": ("empty label map, one class only, or very little of a class", 3),
    "KUG-D24": ("clipped range of intensities", 3),
    "KUG-D25": ("intensities do not fit the modality", 3),
    "KUG-D26": ("only one modality, or one of unknown kind", 3),
    "KUG-D27": ("same content in two files", 3),
    "KUG-D28": ("near-duplicate images in two splits", 3),
    "KUG-D29": ("modalities badly unbalanced", 3),
    "KUG-D30": ("several DICOM series where one is expected", 3),
    "KUG-D31": ("a localiser, or images of another grid, inside a DICOM series", 3),
    "KUG-D32": ("slices missing from a DICOM series", 3),
    "KUG-D33": ("slices of a DICOM series at unequal distances or off their line", 3),
    "KUG-D34": ("DICOM pixel data in a form that nothing here decodes", 3),
    "KUG-D35": ("volume too large for one record", 3),
    "KUG-D36": ("image of another number of channels than its study", 3),
    "KUG-D37": ("synthetic image where scores are taken, or splits are made", 3),
    "KUG-D38": ("scan unlike those that the run was trained on", 3),
    "KUG-D39": ("labels of an atlas where scores are taken, or an atlas that finds nothing", 3),
    "KUG-T01": ("unknown model", 2),
    "KUG-T02": ("setting out of range or unknown", 2),
    "KUG-T03": ("unknown modality", 2),
    "KUG-T04": ("run folder or checkpoint missing, or of another architecture", 2),
    "KUG-T05": ("training produced non-finite losses", 3),
    "KUG-T06": ("will not fit into memory or on the disk", 2),
    "KUG-T07": ("scores that cannot be compared", 3),
    "KUG-T08": ("runs that do not fit together", 2),
    "KUG-T09": ("no synthetic pair that passes the gate", 3),
    "KUG-S01": ("server cannot be reached", 4),
    "KUG-S02": ("model, version or signature not on the server", 4),
    "KUG-S03": ("message larger than the other side accepts", 4),
    "KUG-S04": ("request refused by the server", 4),
    "KUG-S05": ("exported model differs from the trained one", 4),
    "KUG-S06": ("server files or settings not usable", 4),
    "KUG-S07": ("model not checked, or refused by a check", 4),
    "KUG-E01": ("package missing", 4),
    "KUG-E02": ("output already exists", 2),
    "KUG-E03": ("device, or version of TensorFlow or Keras, not usable", 4),
    "KUG-E04": ("disk full, or file that may not be read or written", 4),
    "KUG-E05": ("runner that lost part of the work", 4),
}


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class CodedError(ValueError):
    """An error with a stable code.

    The message reads `CODE where: found …, expected …. why Fix: fix`.

    Args:
        code: Key of `CODES`.
        where: File, case or argument that is wrong.
        found: What was there.
        expected: What should be there.
        why: One sentence: what goes wrong otherwise. May be empty.
        fix: Command or action that helps. May be empty.
    """

    def __init__(self, code, where, found, expected, why="", fix=""):
        if code not in CODES:
            raise KeyError(code)
        super().__init__(code, str(where), found, expected, why, fix)
        self.code, self.where = code, str(where)
        self.found, self.expected, self.why, self.fix = found, expected, why, fix

    @property
    def exit_code(self):
        """Exit code of the command line for this error."""
        return CODES[self.code][1]

    def __str__(self):
        text = f"{self.code} {self.where}: found {self.found}, expected {self.expected}."
        if self.why:
            text += f" {self.why}"
        if self.fix:
            text += f" Fix: {self.fix}"
        return text


def missing_extra(where, package, extra):
    """Returns KUG-E01 for a package of an extra that is not installed."""
    return CodedError(
        "KUG-E01",
        where,
        f"no package {package}",
        f"the extra [{extra}]",
        fix=f'pip install "keras-unigan[{extra}]"',
    )


def of_the_disk(error, where=None):
    """Returns KUG-E04 for an `OSError` of a disk or of permissions; None for any other error.

    Args:
        error: The exception.
        where: File or folder; None takes the one that the error names.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    return CodedError(
        "KUG-E04",
        where or error.filename or "disk",
        os.strerror(error.errno),
        "room, and permission",
        fix="make room or choose another place, and run the command again",
    )


def did_you_mean(name, known):
    """Returns ` (did you mean 'x'?)` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
