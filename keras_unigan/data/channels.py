"""How many channels the images of a study have, and images that are one though a file has several.

A network has one input, so the number is the same for all images of a study. Stains are told apart
by colour, so pictures of microscopy keep theirs; a radiograph or an ultrasound scan that somebody
saved as a colour picture has none, or colours that were painted on it.
"""

import collections
import dataclasses

from keras_unigan.config import ALL_CHANNELS
from keras_unigan.data import volumes
from keras_unigan.data.readers.common import listed
from keras_unigan.errors import CodedError

COLOURS = 3


def merged(cases, channels):
    """Cases whose images are the channels of one file, as one case a file.

    Layouts that name the channels of a file (MSD) give a case for each. The modality of the whole
    is made of their names, `flair+t1w+t2w`.

    Args:
        cases: Cases with absolute paths.
        channels: Channels of the study.

    Returns:
        Tuple of cases, each at the place of its first channel.

    Raises:
        CodedError: KUG-D36 for a file of which other channels are named than 0 to `channels` - 1.
    """
    groups = collections.defaultdict(list)
    for case in cases:
        groups[case.image].append(case)
    result = []
    for group in groups.values():
        group = sorted(group, key=lambda c: (c.channel is not None, c.channel))
        if [c.channel for c in group] == [None]:
            result += group
            continue
        if [c.channel for c in group] != list(range(channels)):
            named = ", ".join(str(c.channel) for c in group)
            raise CodedError(
                "KUG-D36",
                group[0].id,
                f"channels {named} of its file",
                f"0 to {channels - 1}",
                "All images of a study have as many.",
                "--channels with the number of channels of these files",
            )
        modality = "+".join(c.modality for c in group)
        result.append(dataclasses.replace(group[0], modality=modality, channel=None))
    return tuple(result)


def coloured(study, modalities):
    """Whether some picture of the given modalities has colours that differ.

    Args:
        study: `config.Study`.
        modalities: Names of those that are seen in colour.
    """
    for case in study.cases:
        path = study.path(case.image)
        picture = volumes.ending(path) in volumes.PICTURES and "://" not in path
        if not picture or case.modality not in modalities or case.channel is not None:
            continue
        try:
            array = volumes.read(path, ALL_CHANNELS).array
        except CodedError:
            continue  # `unigan check` says what is wrong with it
        if array.ndim > 3 and array.shape[3] == COLOURS and (array != array[..., :1]).any():
            return True
    return False


def check(study):
    """Reads the local images of a study of several channels and counts theirs.

    Raises:
        CodedError: KUG-D36 where some have another number. What cannot be read at all is left to
            `unigan check`.
    """
    found = collections.defaultdict(list)
    for case in study.cases:
        path = study.path(case.image)
        if "://" in path:
            continue
        try:
            found[volumes.read(path, ALL_CHANNELS).channels].append(case.id)
        except CodedError:
            continue
    others = {count: ids for count, ids in sorted(found.items()) if count != study.channels}
    if others:
        shown = "; ".join(f"{n} in {len(ids)} ({listed(ids, 3)})" for n, ids in others.items())
        raise CodedError(
            "KUG-D36",
            study.name,
            f"channels: {shown}",
            f"{study.channels} in all {len(study.cases)} images",
            "A network has one input, so all images of a study have as many channels.",
            "make a study of each kind; or --channels 1, with one channel of each colour image "
            "named in a CSV",
        )
