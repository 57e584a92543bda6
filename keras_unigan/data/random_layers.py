"""Keras layers for image and label map together, in 3-D and 2-D, which Keras lacks.

They take an image `(batch, *spatial, channels)`, or a dictionary with `image`, perhaps `label_map`
`(batch, *spatial)`, and other entries, which pass through. They run eagerly, inside `tf.data` and
inside models, under any dtype policy (float32 inside). Random layers change nothing when
`training` is false; every sample draws its own numbers. Label maps take the nearest voxel, so
labels stay the numbers they were; what comes from outside is 255 (not labelled). Images are in
[-1, 1] with the background at -1. The layers are thin shells around `data.augmentation`.
"""

import keras
import tensorflow as tf

from keras_unigan.data.augmentation import geometry, intensity


class _MapLayer(keras.layers.Layer):
    """Takes images and dictionaries alike; a subclass writes `change(batch)`."""

    def __init__(self, **kwargs):
        # The image is cast once, on the way out.
        super().__init__(**kwargs, autocast=False)

    # Nothing here has Python branches on tensors, and converting them takes longer than the rest.
    @tf.autograph.experimental.do_not_convert
    def _changed(self, inputs):
        batch = inputs if isinstance(inputs, dict) else {"image": inputs}
        if "image" not in batch:
            raise ValueError(f"Expected an image, or a dictionary with 'image', got {list(batch)}.")
        batch = {**batch, "image": tf.cast(tf.convert_to_tensor(batch["image"]), tf.float32)}
        rank = batch["image"].shape.rank
        if rank not in (4, 5):
            raise ValueError(
                "Expected an image of shape (batch, *spatial, channels) with 2 or 3 spatial axes, "
                f"got {batch['image'].shape}."
            )
        if "label_map" in batch:
            batch["label_map"] = tf.convert_to_tensor(batch["label_map"])
            if batch["label_map"].shape.rank != rank - 1:
                raise ValueError(
                    f"Expected a label map of shape {batch['image'].shape[:-1]}, got "
                    f"{batch['label_map'].shape}."
                )
        batch = self.change(batch)
        batch["image"] = tf.cast(batch["image"], self.compute_dtype)
        return batch if isinstance(inputs, dict) else batch["image"]

    def change(self, batch):
        """The batch changed; its image is float32."""
        raise NotImplementedError


class _RandomLayer(_MapLayer):
    """A map with a seed that counts its calls.

    Args:
        share: Share of the samples that are changed.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, share=1.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= share <= 1:
            raise ValueError(f"Expected 0 <= share <= 1, got {share}.")
        self.share, self.seed = share, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=True):
        """The inputs changed at random, or as they were."""
        if not training:
            image = inputs["image"] if isinstance(inputs, dict) else inputs
            image = tf.cast(image, self.compute_dtype)
            return {**inputs, "image": image} if isinstance(inputs, dict) else image
        return self._changed(inputs)

    def change(self, batch):
        return self.draw(batch, tf.cast(self.generator.next(), tf.int64))

    def draw(self, batch, seed):
        """The batch changed with the numbers of a seed (2,)."""
        raise NotImplementedError

    def get_config(self):
        return {**super().get_config(), "share": self.share, "seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_unigan")
class RandomFlip3D(_RandomLayer):
    """Mirrors spatial axes, each with probability one half.

    Args:
        axes: Spatial axes that may be mirrored, counted from 0; None is all.
        share: Share of the samples that may be mirrored at all.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, axes=None, share=1.0, seed=None, **kwargs):
        super().__init__(share, seed, **kwargs)
        self.axes = None if axes is None else tuple(axes)

    def draw(self, batch, seed):
        return geometry.random_flip(batch, seed, self.axes, self.share)

    def get_config(self):
        return {**super().get_config(), "axes": self.axes}


class _Warp(_RandomLayer):
    """A change of coordinates.

    Args:
        spacing: Voxel size of each axis, so that shapes stay true in mm; None is isotropic.
        fill_value: Value of the image outside.
        share: Share of the samples that are changed.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, spacing=None, fill_value=-1.0, share=1.0, seed=None, **kwargs):
        super().__init__(share, seed, **kwargs)
        self.spacing = None if spacing is None else tuple(spacing)
        self.fill_value = fill_value

    def draw(self, batch, seed):
        axes = batch["image"].shape.rank - 2
        if self.spacing is not None and len(self.spacing) != axes:
            raise ValueError(f"Expected a spacing for each of {axes} axes, got {self.spacing}.")
        return geometry.sample(batch, self.coordinates(batch["image"], seed), self.fill_value)

    def coordinates(self, image, seed):
        """Where each voxel of the result is sampled: float32 `(batch, *spatial, axes)`."""
        raise NotImplementedError

    def get_config(self):
        config = super().get_config()
        return {**config, "spacing": self.spacing, "fill_value": self.fill_value}


@keras.saving.register_keras_serializable(package="keras_unigan")
class Affine3D(_Warp):
    """Rotates, scales and shifts.

    Args:
        rotation: Largest angle in degrees, about each axis.
        scale: Largest change of size, from 1/(1 + scale) to 1 + scale.
        shift: Largest shift of each axis, as a share of its length.
        **kwargs: `spacing`, `fill_value`, `share`, `seed`, `name`, `dtype`, as in `Elastic3D`.
    """

    def __init__(
        self,
        rotation=geometry.ROTATION,
        scale=geometry.SCALE,
        shift=geometry.SHIFT,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def coordinates(self, image, seed):
        return geometry.random_affine(
            image, seed, self.rotation, self.scale, self.shift, self.share, self.spacing
        )

    def get_config(self):
        own = {"rotation": self.rotation, "scale": self.scale, "shift": self.shift}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_unigan")
class Elastic3D(_Warp):
    """Displaces smoothly.

    Args:
        sd: Largest standard deviation of a control point; each sample draws its own.
        distance: Distance of the control points. Both in voxels of the finest axis.
        **kwargs: `spacing`: voxel size of each axis, None is isotropic; `fill_value`: value of the
            image outside, -1 by default; `share`: share of the samples that are changed; `seed`;
            `name`, `dtype`.
    """

    def __init__(self, sd=geometry.ELASTIC_SD, distance=geometry.ELASTIC_SPACING, **kwargs):
        super().__init__(**kwargs)
        self.sd, self.distance = sd, distance

    def coordinates(self, image, seed):
        moved = geometry.random_elastic(
            image, seed, self.sd, self.distance, self.share, self.spacing
        )
        return geometry.grid(image) + moved

    def get_config(self):
        return {**super().get_config(), "sd": self.sd, "distance": self.distance}


@keras.saving.register_keras_serializable(package="keras_unigan")
class BiasField3D(_RandomLayer):
    """Multiplies by a smooth field, as a receiver coil does; see `intensity.random_bias_field`.

    Args:
        sd: Largest standard deviation of the field's logarithm at its control points.
        distance: Their distance in voxels.
        share: Share of the samples that are changed.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(
        self, sd=intensity.BIAS_SD, distance=intensity.BIAS_SPACING, share=1.0, seed=None, **kwargs
    ):
        super().__init__(share, seed, **kwargs)
        self.sd, self.distance = sd, distance

    def draw(self, batch, seed):
        return intensity.random_bias_field(batch, seed, self.sd, self.distance, self.share)

    def get_config(self):
        return {**super().get_config(), "sd": self.sd, "distance": self.distance}


@keras.saving.register_keras_serializable(package="keras_unigan")
class Gamma3D(_RandomLayer):
    """Raises the image, mapped to [0, 1], to a power.

    Args:
        gamma: Powers run from 1/(1 + gamma) to 1 + gamma.
        share: Share of the samples that are changed.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, gamma=intensity.GAMMA, share=1.0, seed=None, **kwargs):
        super().__init__(share, seed, **kwargs)
        self.gamma = gamma

    def draw(self, batch, seed):
        return intensity.random_gamma(batch, seed, self.gamma, self.share)

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_unigan")
class LowResolution3D(_RandomLayer):
    """Shows the image as a coarser grid saw it; label maps stay fine.

    Args:
        factor: Largest voxel of the coarse grid, in voxels; each axis draws its own.
        share: Share of the samples that are changed.
        seed: Integer, or None for a random one.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, factor=intensity.COARSE_FACTOR, share=1.0, seed=None, **kwargs):
        super().__init__(share, seed, **kwargs)
        if factor < 1:
            raise ValueError(f"Expected a factor of at least 1, got {factor}.")
        self.factor = factor

    def draw(self, batch, seed):
        return intensity.random_low_resolution(batch, seed, self.factor, self.share)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="keras_unigan")
class Resize3D(_MapLayer):
    """Resizes, linearly as `tf.image.resize` does in 2-D; label maps take the nearest voxel.

    Args:
        size: New length of each spatial axis.
        antialias: Whether the image is averaged where it shrinks.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, size, antialias=False, **kwargs):
        super().__init__(**kwargs)
        self.size, self.antialias = tuple(size), antialias

    def call(self, inputs):
        """The inputs with the new size."""
        return self._changed(inputs)

    def change(self, batch):
        old = geometry.sizes(batch["image"])
        if len(self.size) != len(old):
            raise ValueError(f"Expected a size for each of {len(old)} axes, got {self.size}.")
        pairs = list(zip(old, self.size, strict=True))
        matrices = [geometry.resize_matrix(n, new, self.antialias) for n, new in pairs]
        result = {**batch, "image": geometry.along_axes(batch["image"], matrices)}
        if "label_map" in batch:
            for axis, (n, new) in enumerate(pairs):
                # The middle of a new voxel, in old ones.
                place = (2 * tf.range(new) + 1) * n // (2 * new)
                result["label_map"] = tf.gather(result["label_map"], place, axis=axis + 1)
        return result

    def get_config(self):
        return {**super().get_config(), "size": self.size, "antialias": self.antialias}
