"""PairGame: what the games between two modalities share."""

import keras
import tensorflow as tf

from keras_unigan.errors import CodedError
from keras_unigan.losses import least_squares
from keras_unigan.models.translation import TranslationGame

PAIR = 2


@keras.saving.register_keras_serializable(package="keras_unigan")
class ImagePool(keras.layers.Layer):
    """Images that a generator made earlier, for the discriminator to remember.

    The first `size` images are kept, and handed on as they are. After that one image in two is
    handed on, and the other takes the place of an earlier one, which is handed on in its stead.
    The places are variables, so that they are saved with the game that holds them.

    Args:
        size: Number of images that are kept.
        shape: `(*spatial, channels)` of an image.
        name: Name of the layer.

    Reference: Shrivastava et al. 2017, arXiv:1612.07828, §2.3, in the form of Zhu et al. 2017.
    """

    def __init__(self, size, shape, name="image_pool"):
        super().__init__(name=name, trainable=False, dtype="float32")
        self.size, self.image_shape = size, tuple(shape)
        self.images = self.add_weight((size, *self.image_shape), "zeros", name="images")
        self.filled = self.add_weight((), "zeros", "int32", name="filled")
        self.built = True

    def exchange(self, images, present, noise):
        """Hands images on, or earlier ones in their stead.

        All replicas share one pool: each sees the images of all, in their order in the whole batch,
        and so ends with the same one.

        Args:
            images: `(batch, *spatial, channels)`, float32.
            present: bool `(batch,)`: which of them are images; the others stay as they are.
            noise: float32 `(batch,)` in [0, 1): from 0.5 on an earlier image is taken, and what is
                left of the number says which.

        Returns:
            The shape of `images`.
        """
        images, present, noise = tf.stop_gradient(images), tf.cast(present, "float32"), noise
        local, start = tf.shape(images)[0], 0
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            images, present, noise = (
                context.all_gather(t, axis=0) for t in (images, present, noise)
            )
            start = local * context.replica_id_in_sync_group
        total = tf.shape(images)[0]
        places = tf.cast(tf.floor((2.0 * noise - 1.0) * self.size), "int32")

        def one(i, pool, filled, handed):
            here, filling = present[i] > 0, filled < self.size
            place = tf.where(filling, filled, tf.clip_by_value(places[i], 0, self.size - 1))
            earlier = pool[place]
            stored = here & (filling | (noise[i] >= 0.5))
            handed = handed.write(i, tf.where(stored & ~filling, earlier, images[i]))
            kept = tf.where(stored, images[i], earlier)
            pool = tf.tensor_scatter_nd_update(pool, [[place]], [kept])
            return i + 1, pool, filled + tf.cast(here & filling, "int32"), handed

        handed = tf.TensorArray("float32", total, element_shape=self.image_shape)
        _, pool, filled, handed = tf.while_loop(
            lambda i, *_: i < total,
            one,
            (0, tf.convert_to_tensor(self.images), tf.convert_to_tensor(self.filled), handed),
        )
        self.images.assign(pool)
        self.filled.assign(filled)
        return handed.stack()[start : start + local]

    def get_config(self):
        return {"size": self.size, "shape": list(self.image_shape), "name": self.name}


class PairGame(TranslationGame):
    """A game between two modalities of the plan, there and back.

    A batch holds all modalities of the plan; images of others than the pair are left out, and a
    role that finds nothing to learn from rests. `target` of a batch plays no part.

    The pools are shared by all replicas. Micro-batches of `compile(accumulate=...)` go through them
    one after the other; over several replicas they so meet them in another order than one whole
    batch would.
    """

    # Whether the game learns from label maps of the first modality of the pair.
    taught = False

    def set_pair(self, pair, network, pool_size):
        """Keeps the pair, and makes the pools of both discriminators of images.

        Args:
            pair: Names of the two modalities; None takes the first two of the plan.
            network: The main network, which has to be of that `pair`.
            pool_size: Earlier translations kept for each discriminator; 0 keeps none.

        Raises:
            ValueError: Where they do not fit.
        """
        self.pair = pair_names(self.plan, pair)
        self.domains = tuple(self.plan.modalities.index(m) for m in self.pair)
        if network.pair != self.domains:
            raise ValueError(
                f"Expected a {self.roles[0]} of the modalities {self.domains} {self.pair}, got one "
                f"of {network.pair}."
            )
        if not isinstance(pool_size, int) or pool_size < 0:
            raise ValueError(f"Expected pool_size >= 0, a whole number, got {pool_size!r}.")
        self.pool_size, self.pools = pool_size, []
        if pool_size:
            patch = self.plan.configuration(self.spatial_dims).patch_size
            shape = (*patch, network.channels)
            self.pools = [ImagePool(pool_size, shape, f"pool_{side}") for side in "ab"]

    @classmethod
    def indices(cls, plan, options):
        """Indices of the pair that the options of a game name."""
        return [plan.modalities.index(m) for m in pair_names(plan, options.get("pair"))]

    @classmethod
    def check_cases(cls, plan, cases, labelled, **options):
        pair = pair_names(plan, options.get("pair"))
        missing = [m for m in pair if not cases.get(m)]
        if missing:
            raise CodedError(
                "KUG-D14",
                "split train",
                f"no case of {' and '.join(missing)}",
                f"cases of both of {' and '.join(pair)}",
                "The game is between these two.",
                """--set 'game.pair=["FIRST","SECOND"]' names two that there are""",
            )
        if cls.taught and not labelled.get(pair[0]):
            others = [m for m in plan.modalities if labelled.get(m)]
            raise CodedError(
                "KUG-D14",
                "split train",
                f"no label map of {pair[0]}",
                "label maps of the first modality of game.pair",
                "Only those teach the segmentor.",
                f"""--set 'game.pair=["{others[0]}","{pair[0]}"]'"""
                if others
                else "add label maps",
            )

    @property
    def memory(self):
        return [variable for pool in self.pools for variable in pool.variables]

    def sides(self, batch):
        """For each modality of the pair, its samples of a batch.

        Where there is none, the batch's first sample stands in, since not every operation takes
        an empty batch; it has the weight 0.

        Returns:
            List of two dictionaries: `index` int32 `(n,)`, their places in the batch, `image`,
            `real`, `source` (-1 where not known), `label_map`, `annotated` where the batch has it,
            and `weight` float32 `(n,)`.
        """
        image, source, real, domain, _ = self.unpack(batch)
        parts = {"image": image, "real": real, "source": source}
        parts |= {key: batch[key] for key in ("label_map", "annotated") if key in batch}
        found = []
        for own in self.domains:
            index = tf.cast(tf.where(domain == own)[:, 0], "int32")
            weight = tf.ones_like(index, "float32")
            missing = tf.zeros([1 - tf.minimum(tf.size(index), 1)], "int32")
            index = tf.concat([index, missing], axis=0)
            weight = tf.concat([weight, tf.cast(missing, "float32")], axis=0)
            side = {k: tf.gather(v, index) for k, v in parts.items()}
            found.append({"index": index, "weight": weight, **side})
        return found

    def some(self, side):
        """Whether there is a sample on any replica."""
        return self._anywhere(tf.reduce_any(side["weight"] > 0))

    def pooled(self, pool, batch, other, fake):
        """Translations of a side, or what its pool gives for them."""
        if pool is None:
            return fake
        places = other["index"][:, None]
        whole = tf.scatter_nd(places, fake, tf.shape(batch["image"]))
        present = tf.scatter_nd(places, other["weight"], tf.shape(batch["domain"]))
        whole = pool.exchange(whole, present > 0, batch["noise"])
        return tf.gather(whole, other["index"])

    def judged(self, sides, fakes):
        """Discriminator, its side, the other side, that side's translations, and their pool."""
        pools = self.pools or (None, None)
        a, b = sides
        return (
            ("discriminator_a", a, b, fakes[1], pools[0]),
            ("discriminator_b", b, a, fakes[0], pools[1]),
        )

    def pair_variety(self, sides, fakes):
        """`copy_ratio` and `diversity` of the translations of both sides."""
        image, source, weight = (
            tf.concat([side[k] for side in sides], axis=0) for k in ("image", "source", "weight")
        )
        counts = [tf.size(side["index"]) for side in sides]
        target = tf.repeat(tf.constant(self.domains[::-1], "int32"), counts)
        # Nothing is asked of a sample that only stands in.
        source = tf.where(weight > 0, source, target)
        return self.variety(image, source, tf.concat(fakes, axis=0), target)

    def of_both(self, sides, terms):
        """Terms of a validation batch as if it had both sides.

        Validation goes from volume to volume: one side stands for both. A batch of neither says
        nothing, and the means leave NaN out.
        """
        present = tf.add_n([tf.cast(self.some(side), "float32") for side in sides])
        factor = tf.where(present > 0, 2.0 / present, float("nan"))
        return {name: factor * value for name, value in terms.items()}

    def discriminate(self, role, side, other, fake):
        """Loss of a discriminator, and the mean scores of real and made images (NaN for none).

        Args:
            role: Name of the discriminator.
            side: Samples of its modality.
            other: Samples of the other modality.
            fake: Their translations, or what the pool gave for them.
        """
        # One call for both: there is no norm over the batch in it.
        both = tf.concat([side["real"], fake], axis=0)
        scores = getattr(self, role)(both, training=True)
        parts = scores[: tf.shape(side["real"])[0]], scores[tf.shape(side["real"])[0] :]
        return self.half_squares(*parts, side, other)

    def half_squares(self, real, fake, side, other):
        """Half the squared distances of real scores to 1 and of made ones to 0, and their means.

        Args:
            real: Scores of what samples of `side` gave.
            fake: Scores of what samples of `other` gave.
            side: Samples with their weights.
            other: The same.
        """
        loss, seen = 0.0, []
        for goal, score, part in ((1.0, real, side), (0.0, fake, other)):
            loss += 0.5 * self.average(least_squares(score, goal), part["weight"])
            mean = self.average(tf.reduce_mean(score, axis=(1, 2, 3)), part["weight"])
            seen.append(tf.where(self.some(part), mean, float("nan")))
        return loss, *seen

    def taught_losses(self, side, logits):
        """Cross-entropy and Dice of logits of a side's samples, and whether any is labelled."""
        annotated = side.get("annotated")
        target, valid = self.target(side["label_map"], annotated)
        # A sample that only stands in teaches nothing.
        valid *= tf.reshape(side["weight"], (-1, *[1] * self.spatial_dims))
        ce_loss = self.average(*self.cross_entropy(target, logits, valid, annotated))
        dice_loss = self.average(*self.dice_loss(target, logits, valid, annotated))
        return ce_loss, dice_loss, self._anywhere(tf.reduce_any(valid > 0))


def pair_names(plan, pair):
    """Two modalities of a plan by name; the first two for None."""
    names = tuple(plan.modalities[:PAIR] if pair is None else pair)
    known = [m for m in names if m in plan.modalities]
    if isinstance(pair, str) or len(set(known)) != PAIR or len(names) != PAIR:
        raise ValueError(f"Expected a pair of two of {plan.modalities}, got {pair!r}.")
    return names


def mean_scores(scores):
    """Mean real and fake score over the discriminators that had such images."""
    found = {}
    for name, values in zip(("real_score", "fake_score"), zip(*scores, strict=True), strict=True):
        said = tf.math.is_finite(tf.stack(values))
        # None of them: 0 / 0 is NaN.
        total = tf.reduce_sum(tf.where(said, tf.stack(values), 0.0))
        found[name] = total / tf.reduce_sum(tf.cast(said, "float32"))
    return found
