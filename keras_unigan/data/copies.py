"""Looks for one scan under the names of two subjects, who must then share a split.

The search itself and its limits are those of `data.checks.duplicates`. What is only much alike is
left to `unigan check`, which warns from a lower correlation on: subjects that are linked for no
reason would make one large group in the end.
"""

import dataclasses

from keras_unigan.config import Case
from keras_unigan.data import volumes
from keras_unigan.data.checks import duplicates
from keras_unigan.errors import CodedError

CERTAIN = 0.995
"""Correlation of thumbnails from which two images are copies: another gain gives 0.999 or more."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """Two cases of different subjects that show the same.

    Attributes:
        first: The earlier case.
        second: The later one.
        how: What they have in common, as text.
    """

    first: Case
    second: Case
    how: str

    @property
    def subjects(self):
        """The two subjects."""
        return self.first.subject, self.second.subject


def find(study):
    """Reads the images of a study one by one and compares what is kept of them.

    Args:
        study: `config.Study`.

    Returns:
        List of `Copy`, one a pair of subjects, and the ids of cases whose image was not read: at a
        URI, or not readable (`unigan check` says why).
    """
    hashes, thumbnails, sketches, unread = {}, {}, {}, []
    of = {case.id: case for case in study.cases}
    for case in study.cases:
        path = study.path(case.image)
        if "://" in path:
            unread.append(case.id)
            continue
        try:
            volume = volumes.read_image(path, study.channels, case.channel)
        except CodedError:
            unread.append(case.id)
            continue
        hashes[case.id], thumbnail, sketch = duplicates.signature(volume)
        if thumbnail is not None:
            thumbnails[case.id] = thumbnail
        if sketch is not None:
            sketches[case.id] = sketch
    subjects = {name: case.subject for name, case in of.items()}
    pairs = [(a, b, "the same content") for a, b in duplicates.same_content(hashes)]
    pairs += [
        (a, b, f"correlation {n:.3f}") for a, b, n in duplicates.near(thumbnails, subjects, CERTAIN)
    ]
    pairs += [
        (a, b, f"{n:.0%} of the runs of voxels")
        for a, b, n in duplicates.same_runs(sketches, subjects)
    ]
    found: dict = {}
    for a, b, how in pairs:
        if subjects[a] != subjects[b]:
            found.setdefault(frozenset((subjects[a], subjects[b])), Copy(of[a], of[b], how))
    return list(found.values()), unread
