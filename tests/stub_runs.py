"""Run folders whose network is one known multiplication, for tests of what is done with runs."""

import keras
import numpy as np

from keras_unigan import config

LABELS = config.Labels(classes={"organ": (3,)})
SHAPE, AFFINE = (12, 10, 4), np.diag([1.0, 2.0, 3.0, 1.0])


def make_plan(labels=LABELS, spacing=(1.0, 2.0, 3.0), modalities=("ct", "t1")):
    # Raw 0..200 becomes -1..1 in all modalities.
    window = config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0)
    configurations = {"2d": config.Configuration((8, 8), 2, ((2, 2),), 4)}
    windows = dict.fromkeys(modalities, window)
    return config.Plan("study", tuple(modalities), labels, spacing, None, windows, configurations)


@keras.saving.register_keras_serializable(package="stub_runs")
class Slope(keras.Model):
    """The logit of the organ is a multiple of the normalised image."""

    spatial_dims, channels = 2, 1

    def __init__(self, slope=1.0, name="slope"):
        image = keras.Input((None, None, 1))
        conv = keras.layers.Conv2D(2, 1)
        super().__init__(image, conv(image), name=name)
        conv.set_weights([np.float32([0, slope]).reshape(1, 1, 1, 2), np.zeros(2, "float32")])
        self.slope = slope

    def get_config(self):
        return {"slope": self.slope, "name": self.name}


def write_run(folder, slope=8.0, seen=None):
    """A run folder.

    Args:
        folder: Made here.
        slope: Of its network.
        seen: Subjects that it was trained on, for `audit.csv`; None leaves that out.
    """
    folder.mkdir(parents=True)
    Slope(slope).save(folder / "network.keras")
    make_plan().save(folder / "plan.json")
    if seen is not None:
        rows = [f"1,0,10,ct,{subject},{subject}_ct,5" for subject in seen]
        head = "epoch,from_step,to_step,modality,subject,case,samples"
        (folder / "audit.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder
