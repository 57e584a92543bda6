"""Pictures of translations while a game trains."""

import os
import shutil
from pathlib import Path

import keras
import matplotlib.figure
import numpy as np

from keras_unigan.config import IGNORE

BATCHES = 32
"""Validation batches among which the slice of each modality is chosen."""


class TranslationGrid(keras.callbacks.Callback):
    """Draws one validation slice of each modality in every modality, and what has changed.

    `samples/translations_<epoch>.png` in the run folder, and the last one as `translations.png`.
    Like all of `samples/` they show scans. Games whose `translator` is None are left alone.

    Args:
        folder: Run folder.
        batches: Validation batches (`data.datasets`); the patch with the most foreground among the
            first `BATCHES` stands for its modality.
        plan: `config.Plan`.
        every: Epochs between two pictures; the last epoch always has one.
    """

    def __init__(self, folder, batches, plan, every=1):
        super().__init__()
        self.folder, self.plan, self.every = Path(folder), plan, every
        self.images, self.domains, self.slices = _choose(batches, len(plan.modalities))
        self._epoch = self._drawn = 0

    def on_epoch_end(self, epoch, logs=None):
        """Draws if it is time."""
        self._epoch = epoch + 1
        if self._epoch % self.every == 0:
            self.draw(self._epoch)

    def on_train_end(self, logs=None):
        """Draws the last epoch."""
        if self._drawn < self._epoch:
            self.draw(self._epoch)

    def draw(self, epoch):
        """Draws now; nothing where there is no translator or no labelled validation patch."""
        self._drawn = epoch
        network = getattr(self.model, "translator", None)
        if network is None or not len(self.images):
            return
        shown = []
        for target in range(len(self.plan.modalities)):
            targets = np.full(len(self.images), target, np.int32)
            made = network.translate(self.images, self.domains, targets, training=False)
            shown.append(self._flat(np.asarray(made)))
        figure = _figure(
            self._flat(self.images), np.stack(shown, 1), self.domains, self.plan.modalities
        )
        path = self.folder / "samples" / f"translations_{epoch:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)
        temporary = self.folder / f".{os.getpid()}.translations.png"
        shutil.copyfile(path, temporary)
        temporary.replace(self.folder / "translations.png")

    def _flat(self, images):
        """Slices `(samples, x, y)` of patches: of a stack the middle one, of colours their mean."""
        if images.ndim == 5:
            images = np.stack([x[..., k, :] for x, k in zip(images, self.slices, strict=True)])
        return images.mean(-1) if self.plan.channels > 1 else images[..., images.shape[-1] // 2]


def _choose(batches, count):
    """One patch a modality: images `(samples, *patch, channels)`, domains and slices (3-D)."""
    best: dict[int, tuple] = {}
    for _, batch in zip(range(BATCHES), batches, strict=False):
        keys = ("image", "label_map", "domain", "case")
        arrays = [np.asarray(batch[key]) for key in keys]
        for image, label_map, domain, case in zip(*arrays, strict=True):
            if case < 0:  # fills the last batch up
                continue
            area = ((label_map > 0) & (label_map != IGNORE)).sum((0, 1))
            if domain not in best or area.sum() > best[domain][0]:
                best[int(domain)] = (area.sum(), image, int(np.argmax(area)))
    domains = [d for d in range(count) if d in best]
    images = np.stack([best[d][1] for d in domains]) if domains else np.zeros((0, 1, 1, 1))
    return images, np.array(domains, np.int32), [best[d][2] for d in domains]


def _figure(images, made, domains, modalities):
    """Rows of a scan, its translations, and under each what it changed."""
    rows, columns = 2 * len(images), 1 + len(modalities)
    height = 1.6 * images.shape[2] / images.shape[1]
    size = (1.6 * columns, height * rows + 0.4)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.set_frame_on(False)
    grey = {"cmap": "gray", "vmin": -1, "vmax": 1, "origin": "lower"}
    for row, (image, translations, domain) in enumerate(zip(images, made, domains, strict=True)):
        panels[2 * row, 0].imshow(image.T, **grey)
        panels[2 * row, 0].set_ylabel(modalities[domain], fontsize=9)
        panels[2 * row + 1, 0].set_ylabel("difference", fontsize=8)
        for column, translation in enumerate(translations, 1):
            panels[2 * row, column].imshow(translation.T, **grey)
            change = {**grey, "cmap": "RdBu_r"}
            panels[2 * row + 1, column].imshow((translation - image).T, **change)
    for column, title in enumerate(("scan", *(f"to {m}" for m in modalities))):
        panels[0, column].set_title(title, fontsize=9)
    return figure
