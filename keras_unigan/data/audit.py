"""What a training run has really seen: samples, targets and labelled voxels per modality and case.

`Seen` is told of every batch inside the input pipeline, where everything is known that was drawn.
The pipeline runs ahead of training, and prepares batches that a killed run never trained on; so
`Seen` keeps them by step, and `Audit` takes over those of the steps that were made. Draws are
functions of the step: a resumed run notes the same again.
"""

import csv
import threading
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_unigan.config import write_json


class Seen:
    """Notes of training batches, by the number of their step."""

    def __init__(self):
        self._steps, self._lock = {}, threading.Lock()
        self.cases = ()
        self.modalities: tuple[str, ...] = ()
        self.names: tuple[str, ...] = ()

    def describe(self, cases, plan):
        """Says what numbers mean.

        Args:
            cases: `catalogue.Cases` of the training split.
            plan: `config.Plan`.
        """
        self.modalities, self.names = plan.modalities, plan.labels.names
        self._membership = np.asarray(plan.labels.membership, np.int64)
        modalities = [plan.modalities[d] for d in cases.domains]
        self.cases = tuple(zip(modalities, cases.subjects, cases.names, strict=True))

    def tee(self, batch, step):
        """Notes a batch on its way through `tf.data`; returns it unchanged."""
        count = len(self._membership)
        labels = tf.minimum(tf.cast(batch["label_map"], tf.int32), count)
        labels = tf.reshape(labels, [tf.shape(labels)[0], -1])
        voxels = tf.math.bincount(labels, minlength=count + 1, maxlength=count + 1, axis=-1)
        keys = ("case", "target", "known")
        noted = tf.numpy_function(self.record, [step, *[batch[k] for k in keys], voxels], tf.bool)
        with tf.control_dependencies([noted]):
            return {**batch, "case": tf.identity(batch["case"])}

    def record(self, step, case, target, known, voxels):
        """Notes one batch; the same step again replaces it.

        Args:
            step: Number of the step, from 0.
            case: (batch,) numbers of cases.
            target: (batch,) target modalities.
            known: (batch,) whether samples were normalised by their modality.
            voxels: (batch, indices + 1) voxels of each label index; the last, not labelled.

        Returns:
            True.
        """
        with self._lock:
            self._steps[int(step)] = tuple(np.array(a) for a in (case, target, known, voxels))
        return np.bool_(True)

    def rows(self, first_step, last_step):
        """Takes the notes of the steps `first_step <= step < last_step`.

        Earlier notes are dropped; later ones, of batches that were prepared ahead, stay.

        Returns:
            One dict per case that was seen, in the order of cases: `modality`, `subject`, `case`,
            `samples`; `unknown`, samples normalised as of no known modality; `to_<modality>`,
            samples with this target; `patches_<name>` and `voxels_<name>`, samples and voxels with
            each of the plan's outputs; `voxels_unlabelled`. And the number of steps found.
        """
        with self._lock:
            found = [self._steps[s] for s in sorted(self._steps) if first_step <= s < last_step]
            self._steps = {s: note for s, note in self._steps.items() if s >= last_step}
        if not found:
            return [], 0
        case, target, known, voxels = (np.concatenate(a) for a in zip(*found, strict=True))
        outputs = voxels[:, :-1] @ self._membership
        rows = []
        for number in np.unique(case):
            mine = case == number
            to = np.bincount(target[mine], minlength=len(self.modalities))
            patches, inside = (outputs[mine] > 0).sum(axis=0), outputs[mine].sum(axis=0)
            row = dict(zip(("modality", "subject", "case"), self.cases[number], strict=True))
            row |= {"samples": int(mine.sum()), "unknown": int((~known[mine]).sum())}
            row |= {f"to_{m}": int(n) for m, n in zip(self.modalities, to, strict=True)}
            row |= {f"patches_{n}": int(v) for n, v in zip(self.names, patches, strict=True)}
            row |= {f"voxels_{n}": int(v) for n, v in zip(self.names, inside, strict=True)}
            rows.append({**row, "voxels_unlabelled": int(voxels[mine, -1].sum())})
        return rows, len(found)


class Audit:
    """Keeps `audit.csv` (rows of `Seen` per epoch) and `audit.json` (their sums per modality).

    Rows carry `epoch` and the steps `from_step <= step < to_step` that they sum. An epoch that was
    interrupted has two sets of rows.

    Args:
        folder: Run folder. What an earlier session wrote of steps before `start_step` stays.
        seen: The `Seen` that `datasets.load` was given.
        start_step: Step at which this session starts.
    """

    def __init__(self, folder, seen, start_step=0):
        self.path, self.seen, self.step = Path(folder) / "audit.csv", seen, start_step
        self.totals, self.noted = {}, 0
        before = _read(self.path, start_step) if start_step else []
        self.noted = sum(
            to - first for first, to in {(r["from_step"], r["to_step"]) for r in before}
        )
        self._add(before)
        self.path.unlink(missing_ok=True)
        write(self.path, before)

    def advance(self, step, epoch):
        """Writes what was seen since the last call.

        To be called at the end of each epoch, and before each checkpoint, so that a run that is
        resumed from it misses nothing.

        Args:
            step: Number of steps made so far.
            epoch: Number of the epoch they belong to, from 1.
        """
        if step <= self.step:
            return
        rows, noted = self.seen.rows(self.step, step)
        place = {"epoch": epoch, "from_step": self.step, "to_step": step}
        rows = [{**place, **row} for row in rows]
        write(self.path, rows)
        self._add(rows)
        self.step, self.noted = step, self.noted + noted
        write_json(self.path.with_suffix(".json"), self.summary())

    def _add(self, rows):
        """Adds rows to the sums of their cases."""
        for row in rows:
            total = self.totals.setdefault((row["modality"], row["subject"], row["case"]), {})
            for key, value in list(row.items())[6:]:
                total[key] = total.get(key, 0) + value

    def summary(self):
        """Steps made and noted; per modality its subjects, cases and the sums of all columns."""
        result = {"steps": self.step, "steps_noted": self.noted, "modalities": {}}
        for modality in self.seen.modalities:
            mine = {key: total for key, total in self.totals.items() if key[0] == modality}
            entry = {"subjects": len({key[1] for key in mine}), "cases": len(mine)}
            for total in mine.values():
                for key, value in total.items():
                    entry[key] = entry.get(key, 0) + value
            result["modalities"][modality] = entry
        return result


def write(path, rows):
    """Adds rows to a CSV file, with a header where it is new."""
    if not rows:
        return
    new = not Path(path).is_file()
    with Path(path).open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _read(path, end):
    """Rows of steps before `end`; a line cut off by a kill belongs to later ones."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if None in row.values() or not row["to_step"].isdigit() or int(row["to_step"]) > end:
                break
            texts = ("modality", "subject", "case")
            rows.append({k: v if k in texts else int(v) for k, v in row.items()})
    return rows
