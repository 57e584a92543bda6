"""Random changes of {"image", "label_map"} together, for batches, in 2-D and 3-D.

Each function takes a batch whose image `(batch, *spatial, channels)` is float32 in [-1, 1] and
whose label map is `(batch, *spatial)`, and a seed `(2,)`. Every sample draws its own numbers; the
same seed gives the same result, eagerly and inside `tf.data`. Other entries pass through.
`random_layers` holds the same as Keras layers.
"""

import tensorflow as tf

from keras_unigan.data.augmentation import contrast, geometry, intensity
from keras_unigan.data.augmentation.contrast import contrasted

AUGMENTATIONS = {
    "warp": geometry.random_warp,
    "flip": geometry.random_flip,
    "bias_field": intensity.random_bias_field,
    "intensity": intensity.random_intensity,
    "gamma": intensity.random_gamma,
    "blur": intensity.random_blur,
    "low_resolution": intensity.random_low_resolution,
    "noise": intensity.random_noise,
}
"""Name -> function(batch, seed) -> batch, in the order in which `augment` applies them."""

LEVELS = {
    "none": (),
    "light": ("flip", "intensity", "gamma", "noise"),
    "standard": tuple(AUGMENTATIONS),
    "contrast": tuple(AUGMENTATIONS),
    "paint": tuple(AUGMENTATIONS),
}
"""Level -> what it applies; after the warp "contrast" randomises contrasts, and "paint" replaces
every image by one that is painted from its label map."""

# Samples of random contrast get more of what else differs between scanners.
STRONGER = {
    "noise": {"sd": (0.3, intensity.NOISE)},
    "bias_field": {"sd": (0.7, intensity.BIAS_SD), "share": (1.0, intensity.BIAS_SHARE)},
    "blur": {"sigma": (1.0, intensity.BLUR_SIGMA), "share": (1.0, intensity.BLUR_SHARE)},
    "low_resolution": {
        "factor": (3.0, intensity.COARSE_FACTOR),
        "share": (0.5, intensity.COARSE_SHARE),
    },
}


# Nothing here has Python branches on tensors, and converting them takes longer than the rest.
@tf.autograph.experimental.do_not_convert
def augment(
    batch,
    seed,
    level="light",
    contrast_fraction=0.5,
    spacing=None,
    equalized=False,
    painted=contrast.PAINTED,
):
    """Applies what a level holds; all channels of an image change alike, but for noise.

    Args:
        batch: Dict with `image` in [-1, 1] and `label_map`; a `real` image, the same as its own
            modality shows it, is changed alike but keeps its contrast.
        seed: Integers (2,).
        level: Key of `LEVELS`.
        contrast_fraction: Share of the samples that "contrast" gives a random contrast: those of
            `contrasted` with this seed.
        spacing: Voxel size of each axis, so that rotations are rotations in mm.
        equalized: Whether samples of random contrast are equalized; under "paint", those that are
            not `known`.
        painted: Share of those that are painted; see `contrast.random_contrast`.

    Returns:
        The same dict with all of them changed.

    Raises:
        ValueError: For an unknown level, or a `real` image beside one that is painted.
    """
    if level not in LEVELS:
        raise ValueError(f"Expected level in {list(LEVELS)}, got {level!r}.")
    if level == "paint" and "real" in batch:
        raise ValueError('Expected no real image under the level "paint".')
    changed, real = None, {}
    if "real" in batch:
        # The same seed draws the same changes.
        plain = "standard" if level == "contrast" else level
        real = {"real": augment({"image": batch["real"]}, seed, plain, spacing=spacing)["image"]}
    if level == "contrast":
        changed = contrasted(seed, tf.shape(batch["image"])[0], contrast_fraction)
    elif level == "paint":
        changed = tf.fill([tf.shape(batch["image"])[0]], True)
    for name in LEVELS[level]:
        options = {}
        if name == "warp":
            options = {"spacing": spacing} | ({"shares": (1.0, 1.0)} if level == "paint" else {})
        elif changed is not None and name in STRONGER:
            options = {k: tf.where(changed, *pair) for k, pair in STRONGER[name].items()}
        batch = AUGMENTATIONS[name](batch, seed, **options)
        if name == "warp" and level == "paint":
            batch = contrast.paint_all(batch, seed, equalized)
        elif name == "warp" and changed is not None:
            batch = contrast.random_contrast(batch, seed, changed, equalized, painted)
    return {**batch, **real}
