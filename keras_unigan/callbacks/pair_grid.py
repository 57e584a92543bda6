"""Pictures of the pairs that a generator makes from noise, while it trains."""

import os
import shutil
from pathlib import Path

import keras
import matplotlib.figure
import numpy as np

PAIRS = 6
"""Pairs of each modality in a picture; the same noise in every one."""


class PairGrid(keras.callbacks.Callback):
    """Draws made images of each modality, and under them the masks that came with them.

    `samples/pairs_<epoch>.png` in the run folder, and the last one as `pairs.png`, marked
    SYNTHETIC. Games whose network makes no pairs (`sample`) are left alone.

    Args:
        folder: Run folder.
        plan: `config.Plan`.
        every: Epochs between two pictures; the last epoch always has one.
    """

    def __init__(self, folder, plan, every=1):
        super().__init__()
        self.folder, self.plan, self.every = Path(folder), plan, every
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
        """Draws now."""
        self._drawn = epoch
        if not hasattr(self.model.network, "sample"):
            return
        figure = _figure(self.model, self.plan)
        path = self.folder / "samples" / f"pairs_{epoch:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)
        temporary = self.folder / f".{os.getpid()}.pairs.png"
        shutil.copyfile(path, temporary)
        temporary.replace(self.folder / "pairs.png")


def _figure(model, plan):
    """Rows of images and of their masks, two for each modality."""
    count = len(plan.modalities)
    seeds = np.stack([np.arange(PAIRS), np.full(PAIRS, 2**20)], axis=-1)
    patch = plan.configuration(model.spatial_dims).patch_size
    height = 1.6 * patch[1] / patch[0]
    size = (1.6 * PAIRS, 2 * count * height + 0.5)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2 * count, PAIRS, squeeze=False)
    figure.suptitle("SYNTHETIC", fontsize=9)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.set_frame_on(False)
    outputs = len(plan.labels.names)
    for domain, modality in enumerate(plan.modalities):
        image, logits = model.network.sample(seeds, np.full(PAIRS, domain, np.int32))
        image = _flat(np.asarray(image)).mean(-1)
        masks = _flat(np.asarray(model.activate(logits)))
        if plan.labels.overlapping:
            # Regions are painted in their order.
            index = np.max((masks > 0.5) * np.arange(1, outputs + 1), axis=-1)
        else:
            index = masks.argmax(-1)
        panels[2 * domain, 0].set_ylabel(modality, fontsize=9)
        panels[2 * domain + 1, 0].set_ylabel("masks", fontsize=8)
        for column in range(PAIRS):
            grey = {"cmap": "gray", "vmin": -1, "vmax": 1, "origin": "lower"}
            panels[2 * domain, column].imshow(image[column].T, **grey)
            colours = {"cmap": "viridis", "vmin": 0, "vmax": outputs, "origin": "lower"}
            panels[2 * domain + 1, column].imshow(
                index[column].T, interpolation="nearest", **colours
            )
    return figure


def _flat(values):
    """The middle slices of volumes `(batch, x, y, z, channels)`; slices as they are."""
    return values[:, :, :, values.shape[3] // 2] if values.ndim == 5 else values
