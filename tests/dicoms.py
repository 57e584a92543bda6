"""Small DICOM files made on the fly."""

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CT = "1.2.840.10008.5.1.4.1.1.2"
CANARY = "CANARY^PATIENT"


def dataset(pixels, modality="CT", uid="1.2.3.4", sop_class=CT, **tags):
    """One image, or several frames, of `pixels` (rows, columns) or (frames, rows, columns)."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.PatientName, made.PatientID = CANARY, CANARY
    made.SeriesDescription = CANARY
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = "1.2.3", uid, modality
    pixels = np.asarray(pixels)
    made.Rows, made.Columns = pixels.shape[1:3] if pixels.ndim > 2 else pixels.shape
    if pixels.ndim > 2 and "SamplesPerPixel" not in tags:
        made.NumberOfFrames = len(pixels)
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def place(affine, k=0):
    """Tags of slice `k` of a grid (column, row, slice) to RAS+ mm."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return {
        "ImageOrientationPatient": [
            float(f"{v:.10g}") for v in (lps[:3, :2] / spacing[:2]).T.ravel()
        ],
        "ImagePositionPatient": [float(f"{v:.10g}") for v in lps[:3, 3] + k * lps[:3, 2]],
        "PixelSpacing": [float(f"{v:.10g}") for v in (spacing[1], spacing[0])],
        "SliceThickness": float(f"{spacing[2]:.10g}"),
    }


def save(path, made):
    """Writes one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def write_series(folder, array, affine, keep=None, names=None, **tags):
    """Writes slices (columns, rows, slices) as single files, in a mixed order of names."""
    count = array.shape[2]
    for k in range(count) if keep is None else keep:
        made = dataset(array[:, :, k].T, **{**place(affine, k), **tags})
        save(folder / f"{(7 * k + 3) % 101:03d}.dcm", made)


def item(**tags):
    """A sequence of one item."""
    made = pydicom.Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return pydicom.Sequence([made])
