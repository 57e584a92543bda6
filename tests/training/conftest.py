"""Shards of a phantom study and short experiments on them."""

import phantom_shards
import pytest

from keras_unigan.config import Experiment, TrainOptions


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return phantom_shards.write(
        tmp_path_factory.mktemp("shards"),
        patch_size=(32, 32),
        filters=4,
        modalities=("ct", "t1"),
        subjects_per_modality=3,
        size=32,
        depth=6,
    )


@pytest.fixture(scope="session")
def experiment(shards):
    """Function to an experiment of two epochs of three steps, with some settings changed."""

    def make(output, train=(), **changes):
        options = {"patch_size": (32, 32), "batch_size": 4, "steps_per_epoch": 3}
        options |= {"learning_rate": 1e-3, "ema_decay": 0.9, **dict(train)}
        # One level: most of the time of such a run goes into building the graph.
        settings = {"model": "joint", "epochs": 2, "network": {"strides": [[2, 2]]}, **changes}
        return Experiment(
            shards=str(shards), output=str(output), train=TrainOptions(**options), **settings
        )

    return make
