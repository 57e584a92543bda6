"""Training cases of a run, read from its shards when they are asked for."""

import dataclasses
import functools

import numpy as np

from keras_unigan.data import preprocessing, records
from keras_unigan.errors import CodedError


@dataclasses.dataclass(frozen=True)
class Source:
    """One prepared case.

    Attributes:
        case: Its name.
        modality: Its modality.
        image: float32 `(x, y, z)` or `(x, y, z, channels)`, raw.
        label_map: uint8 indices, or None where not labelled.
        statistics: As of `preprocessing.Prepared`.
        affine: Voxel index to RAS+ mm.
    """

    case: str
    modality: str
    image: np.ndarray
    label_map: np.ndarray | None
    statistics: np.ndarray
    affine: np.ndarray

    @property
    def prepared(self):
        """As `preprocessing.Prepared`, on its own grid."""
        shape = self.image.shape[:3]
        box = tuple(slice(0, side) for side in shape)
        return preprocessing.Prepared(
            self.image, self.label_map, self.statistics, self.affine, box, shape
        )


class Sources:
    """The cases of one split.

    Args:
        folder: Folder of shards.
        plan: `config.Plan` that they must have been made with.
        split: Split.

    Raises:
        CodedError: As `records.Manifest.load`.
    """

    def __init__(self, folder, plan, split="train"):
        self.manifest, self.plan = records.Manifest.load(folder, plan=plan), plan
        self.folder, self.split = folder, split
        self.places = [
            (case, modality, file, position)
            for modality in plan.modalities
            for shard, file in zip(
                [s for s in self.manifest.shards if (s.split, s.modality) == (split, modality)],
                self.manifest.files(split, modality),
                strict=True,
            )
            for position, case in enumerate(shard.cases)
        ]
        # Scans are large: only the last few stay.
        self.read = functools.lru_cache(8)(self._read)

    def __len__(self):
        return len(self.places)

    def of(self, modality):
        """Numbers of the cases of a modality."""
        return [n for n, place in enumerate(self.places) if place[1] == modality]

    def _read(self, number):
        """`Source` of a case number."""
        case, modality, file, position = self.places[number]
        dataset = records.read_shards([file], self.plan.channels).skip(position).take(1)
        record = dataset.get_single_element()
        labelled = bool(record["labelled"]) and not len(record["annotated"])
        return Source(
            case,
            modality,
            record["image"].numpy(),
            record["label_map"].numpy() if labelled else None,
            record["statistics"].numpy(),
            record["affine"].numpy(),
        )

    def labelled(self, order):
        """Numbers in `order` whose label maps show every class somewhere, lazily.

        Raises:
            CodedError: KUG-D14 where there is none.
        """
        found = False
        for number in order:
            label_map = self.read(number).label_map
            if label_map is not None and np.isin(label_map, (0, 255), invert=True).any():
                found = True
                yield number
        if not found:
            raise CodedError(
                "KUG-D14",
                self.folder,
                f"no case of {self.split} with anything labelled in it",
                "one at least",
                "A pair needs a label map to start from.",
                "prepare a study with labels, or --method noise",
            )
