"""The one pass over a study's files that finds everything `findings` can name.

Files are read once each: cases are grouped by label map, so that one label map of several images is
open while they are. What stays of a case is a hash, a thumbnail, a sketch, two shapes and the voxel
counts.
"""

import collections
import os

from keras_unigan.config import ALL_CHANNELS, SPLITS, synthetic_error
from keras_unigan.data import nifti, preprocessing, volumes
from keras_unigan.data.checks import (
    drafts,
    duplicates,
    geometry,
    scans,
    voxels,
    whole,
)
from keras_unigan.data.checks.findings import Report, of_study, worst_first
from keras_unigan.errors import CodedError


class _Pass:
    """What one pass gathers."""

    def __init__(self, draft):
        self.draft, self.found, self.files = draft, list(draft.findings), 0
        self.hashes, self.thumbnails, self.sketches, self.amounts = {}, {}, {}, {}
        self.shapes, self.cropped, self.spacings = {}, {}, {}
        self.seen, self.remote = {}, set()
        names = [n for e in draft.entries for n in (e.case.image, e.case.label)]
        self.used = {draft.path(n) for n in names if n is not None}

    def open(self, entry, name, part):
        """Reads one file and adds what is wrong with it; None where it cannot be used."""
        path = self.draft.path(name)
        self.found += scans.name_findings(entry, name, part)
        if "://" in path:
            self.remote.add(path)
            return None
        if not os.path.exists(path):
            self.found.append(scans.missing(entry, path, name, part, self.used))
            return None
        self.files += 1
        channels = self.draft.study.channels
        kept = ALL_CHANNELS if channels > 1 else entry.case.channel
        scan = scans.open_scan(path, kept if part == "image" else None)
        self.found += scans.outside_findings(entry, scan, path, part)
        self.found += scans.sidecar_findings(entry, path, part)
        if scan.volume is not None:
            self.found += geometry.header_findings(entry, scan.volume, part)
        return scan.volume

    def group(self, label_name, entries):
        """All cases of one label map (or one case without)."""
        label = counts = None
        if label_name is not None:
            label = self.open(entries[0], label_name, "label")
            if label is not None and self.draft.labels is not None:
                found, counts = voxels.label_findings(entries[0], label.array, self.draft.labels)
                self.found += found
        for entry in entries:
            if counts is not None:
                found, own = voxels.annotated_findings(entry, counts, self.draft.labels)
                self.found += found
                self.amounts[entry.number] = own
            self.image(entry, label)

    def image(self, entry, label):
        """One image, and its label map where there is one."""
        path = self.draft.path(entry.case.image)
        first = self.seen.setdefault((path, entry.case.channel), entry)
        if first is not entry:
            self.found.append(
                entry.finding(
                    "KUG-D13",
                    "error",
                    f"the image file of {first.name}",
                    "each image once",
                    "The same image in training and test makes every score a lie.",
                    "remove the second entry",
                    "image",
                )
            )
            return
        volume = self.open(entry, entry.case.image, "image")
        if volume is None:
            return
        try:
            volumes.check_channels(volume, self.draft.study.channels, path)
        except CodedError as error:
            self.found.append(entry.of_error(error, "image"))
            return
        if volume.synthetic and entry.case.split in SPLITS[1:]:
            marked = synthetic_error(entry.name, entry.case.split)
            self.found.append(entry.of_error(marked, "image"))
        self.found += voxels.image_findings(entry, volume.array)
        if label is not None:
            self.found += geometry.pair_findings(entry, volume, label)
        self.hashes[entry.number], thumbnail, sketch = duplicates.signature(volume)
        if thumbnail is not None:
            self.thumbnails[entry.number] = thumbnail
        if sketch is not None:
            self.sketches[entry.number] = sketch
        ras = nifti.to_ras(volume)
        box = preprocessing.crop_box(ras.array)
        self.shapes[entry.number] = ras.shape
        self.cropped[entry.number] = tuple(s.stop - s.start for s in box)
        self.spacings[entry.number] = ras.spacing


def check(path, plan=None, limit=None):
    """Checks a study.

    Args:
        path: `study.json`.
        plan: `config.Plan`, to find volumes smaller than its patch; or None.
        limit: Only the first cases; what concerns the study as a whole is then not judged.

    Returns:
        `Report`, and the pairs of case numbers that must share a split.

    Raises:
        CodedError: KUG-D01 or KUG-D08 when the study file cannot be read at all.
    """
    draft = drafts.open_study(path)
    entries = draft.entries[:limit]
    run = _Pass(draft)
    groups = collections.defaultdict(list)
    for entry in entries:
        groups[entry.case.label or entry.number].append(entry)
    for key, group in groups.items():
        run.group(key if isinstance(key, str) else None, group)
    cases_of = whole.table(entries, draft.study.modalities)
    lacks, classes = whole.class_findings(
        run.amounts, entries, draft.labels.foreground if draft.labels else ()
    )
    copies, twins = whole.copy_findings(entries, run.hashes, run.thumbnails, run.sketches)
    run.found += copies
    run.found += whole.label_lack_findings(entries, any(e.case.label for e in entries))
    run.found += whole.flat_findings(entries, run.shapes)
    if plan is not None:
        run.found += whole.patch_findings(entries, run.cropped, run.spacings, plan)
    if run.remote:
        run.found.append(
            of_study(
                "KUG-D01",
                "warning",
                f"{len(run.remote)} files at URIs, which are not read here",
                "local files",
                "They are checked when they are prepared.",
            )
        )
    if limit is None:
        run.found += [*lacks, *whole.split_findings(cases_of)]
        run.found += whole.modality_findings(draft.study.modalities)
        if not draft.total:
            run.found.append(of_study("KUG-D01", "error", "no case", "one at least"))
    found = worst_first(run.found)
    return Report(str(path), len(entries), run.files, found, cases_of, classes), tuple(twins)
