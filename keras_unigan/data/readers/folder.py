"""Plain folders: `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`."""

import collections
import dataclasses
from pathlib import Path

from keras_unigan.config import Case
from keras_unigan.data.readers import common, names
from keras_unigan.data.readers.common import SPLIT_NAMES, Found
from keras_unigan.errors import CodedError


@dataclasses.dataclass(frozen=True)
class _File:
    """What a name says: an image of a modality, or a label map of what `subject` begins with."""

    path: Path
    subject: str
    visit: str | None
    name: str
    kind: str = "image"

    @property
    def key(self):
        """What a label map is of, as text."""
        return "_".join(part for part in (self.subject, self.visit) if part).lower()


def read(folder, label_name=None, modality=None):
    """Reads `<subject>_<modality>.nii.gz` beside `<subject>_seg.nii.gz`.

    Files lie flat or in a folder per subject, and in that in a folder per visit, however deep; a
    folder `train`, `val` or `test` around them gives the split. DICOM comes as a folder of slices
    or a zip archive of that name, `<subject>_<modality>` or `<subject>/<modality>`. In the folder
    of a subject `<modality>.nii.gz` beside `seg.nii.gz` is enough, `study1_<modality>.nii.gz` tells
    visits apart, and of a long name the first word counts that names a modality.
    `<subject>_<modality>_seg.nii.gz` is the label map of that modality alone. Elsewhere the
    modality is what follows the last underscore. `names` holds the words that mark label maps. A
    file that is named like another with something behind it is not taken for an image.

    Args:
        folder: Local folder.
        label_name: Word that marks the label maps, in place of the usual ones.
        modality: Modality of files that say none.

    Returns:
        `Found`: cases with absolute paths, sorted by file name; `left` holds what is not used.

    Raises:
        CodedError: KUG-D01 without images or for a name without underscore, KUG-D02 for label maps
            without an image or where no image has one, KUG-D13 for one case in two files.
    """
    folder = Path(folder).resolve()
    everything = names.below(folder)
    paths, previews = names.scans(everything)
    paths = sorted([*paths, *names.series(everything)])
    stems = collections.defaultdict(set)
    for path in paths:
        stems[path.parent].add(names.stem(path))
    parse = _Names(folder, stems, label_name, modality).parse
    files = [parse(path) for path in paths]
    marked = [f for f in files if f.kind == "label"]
    # A mask of the brain is what is looked for only where nothing else is.
    marked = marked or [f for f in files if f.kind == "mask"]
    images, labels = {}, {}
    for file in marked:
        _add_label(labels, file)
    for file in files:
        if file.kind == "image":
            common.add(images, (file.subject, file.visit, file.name.lower()), file.path)
    if not images:
        raise common.no_images(folder, len(everything), len(labels))
    found, used = [], set()
    for (subject, visit, name), path in sorted(images.items(), key=lambda item: str(item[1])):
        whole = [subject, *([visit] if visit else []), name]
        keys = ("_".join(whole[:n]).lower() for n in range(len(whole), 0, -1))
        key = next((k for k in keys if k in labels), None)
        used.add(key)
        place = {"label": str(labels[key]) if key else None, "split": _split(path, folder)}
        found.append(Case(subject, name, str(path), visit=visit, **place))
    orphans = [p for k, p in labels.items() if k not in used]
    left = [f.path for f in files if f.kind != "image" and f not in marked] + previews

    def ending(path):
        return (names.stem(path) or "").rpartition("_")[2]

    others = left or [Path(case.image) for case in found]
    common.check_labelled(found, orphans, folder, lambda: names.candidates(others, ending))
    return Found(tuple(found), left=tuple(str(path) for path in left))


def _add_label(labels, file):
    if file.key in labels:
        words = [names.words(names.stem(p)) for p in (labels[file.key], file.path)]
        apart = [next((w for w in a if w not in b), None) for a, b in (words, words[::-1])]
        fix = " or ".join(f"--label-name {word}" for word in apart if word)
        raise CodedError(
            "KUG-D13",
            file.key,
            f"label maps {labels[file.key].name} and {file.path.name}",
            "one label map an image",
            "Which one is meant cannot be told.",
            fix and f"say which: {fix}",
        )
    labels[file.key] = file.path


def _split(path, folder):
    """Split that a folder around the file names, or None."""
    parts = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)


class _Names:
    """How the names of one folder are read.

    Args:
        root: Folder of the study.
        stems: Folder -> names without ending of the files in it.
        label_name: As in `read`.
        modality: As in `read`.
    """

    def __init__(self, root, stems, label_name, modality):
        self.root, self.stems = root, stems
        self.label_name, self.modality = label_name, modality

    def parse(self, path):
        """`_File` of a path."""
        folders = path.relative_to(self.root).parts[:-1]
        folders = [part for part in folders if part.lower() not in SPLIT_NAMES]
        visit = folders.pop() if len(folders) > 1 and names.VISIT.fullmatch(folders[-1]) else None
        own, stem = (folders[-1] if folders else None), names.stem(path)
        if stem.startswith("sub-") and "_" in stem:
            first, *middle, last = stem.split("_")
            visit = next((part for part in middle if part.startswith("ses-")), visit)
            return _File(path, first, visit, last, self.kind(last, stem))
        if own is not None:
            rest = stem[len(own) :] if stem.lower().startswith(own.lower()) else None
            if rest is not None and (not rest or not rest[0].isalnum()):
                return self.inside(path, own, visit, rest.strip("_-. "))
            first, _, rest = stem.partition("_")
            if rest and names.VISIT.fullmatch(first):
                return self.inside(path, own, first, rest)
            if not rest or first.lower() in _KNOWN:
                return self.inside(path, own, visit, stem)
        subject, underscore, name = stem.rpartition("_")
        if not underscore:
            return _File(path, stem, visit, self.unnamed(path))
        kind = self.kind(name, stem)
        if kind == "image" and name.lower() not in names.MODALITIES:
            # `a_t1_bet` beside `a_t1` is made of it.
            kind = "left" if subject in self.stems[path.parent] else kind
        return _File(path, subject, visit, name, kind)

    def inside(self, path, own, visit, rest):
        """`_File` of a path in the folder of its subject; `rest` is what its name says more."""
        parts = rest.split("_") if rest else []
        if not parts:
            return _File(path, own, visit, self.unnamed(path))
        known = [part for part in parts if part.lower() in names.MODALITIES]
        marks = (parts[-1], *(parts[:1] if parts[0].lower() not in names.MODALITIES else ()))
        kind = next((k for k in (self.kind(m, rest) for m in marks) if k != "image"), "image")
        if kind != "image":
            # `t1_seg` is of t1 alone, `seg` and `gold_standard` of all that the subject has.
            of = parts[:-1] if known or len(marks) == 1 or kind == self.kind(marks[0], rest) else []
            of = [part for part in of if known or part.lower() not in _KNOWN]
            subject = "_".join([own, *([visit] if visit else []), *of])
            return _File(path, subject, None, parts[-1], kind)
        if known and parts[-1] is not known[-1]:
            before = names.stem(path)[: -len(parts[-1]) - 1]
            made = before in self.stems[path.parent]
            return _File(path, own, visit, known[0], "left" if made else "image")
        more = "_".join(parts[:-1]) or None
        return _File(path, own, "_".join(p for p in (visit, more) if p) or None, parts[-1])

    def kind(self, word, stem):
        """What a word that ends or begins a name marks."""
        usual = "label" if word.lower() in names.LABELS else "mask"
        usual = usual if word.lower() in (*names.LABELS, *names.MASKS) else "image"
        if self.label_name is None:
            return usual
        if names.bears(stem, self.label_name):
            return "label"
        return "image" if usual == "image" else "left"

    def unnamed(self, path):
        """The modality that was said for names without one.

        Raises:
            CodedError: KUG-D01 where none was.
        """
        if self.modality is None:
            raise CodedError(
                "KUG-D01",
                path,
                f"a name without an underscore; seen: {common.seen(self.root)}",
                common.LAYOUTS,
                fix=f"rename it to {names.stem(path)}_<modality>.nii.gz, say --modality, or write "
                "a CSV file",
            )
        return self.modality


_KNOWN = frozenset((*names.MODALITIES, *names.LABELS, *names.MASKS))
