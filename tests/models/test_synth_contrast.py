"""`synth_contrast`: a network that saw painted images only finds the classes in scans."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import dataset, phantom_slices, plan, tensors

from keras_unigan.data import augmentation
from keras_unigan.models import SupervisedModel
from keras_unigan.networks import UNet
from keras_unigan.systems import SYSTEMS

TAKEN = ("image", "label_map", "domain", "known")


def learnt(a_plan, whole, scans, steps, filters, batch_size):
    """Dice in scans before and after training on images painted from their label maps."""
    keras.utils.set_random_seed(3)
    asked = SupervisedModel.network_arguments(a_plan)["segmentor"]
    model = SupervisedModel(UNet(filters=filters, levels=2, **asked), a_plan, total_steps=steps)
    model.compile()
    level = SYSTEMS["synth_contrast"]["train"]["augment"]
    paint = tf.function(lambda batch, seed: augmentation.augment(batch, seed, level))
    random, batches = np.random.default_rng(0), []
    for step in range(steps):
        pick = random.permutation(len(whole["image"]))[:batch_size]
        batch = tensors({key: whole[key][pick] for key in TAKEN})
        made = paint(batch, tf.constant([0, step], tf.int64))
        batches.append({key: value.numpy() for key, value in made.items()})

    def dice():
        # Mean over modalities of the mean over classes.
        scored = dataset([scans])
        return model.evaluate(scored, steps=1, verbose=0, return_dict=True)["dice"]

    before = dice()
    model.fit(dataset(batches), steps_per_epoch=steps, verbose=0, shuffle=False)
    return before, dice()


@pytest.mark.slow
def test_it_learns_phantoms_from_painted_images_alone():
    a_plan = plan(size=48)
    before, after = learnt(a_plan, phantom_slices(range(6)), phantom_slices([50, 51]), 120, 8, 8)
    assert after > 0.2
    assert after > 2 * before
