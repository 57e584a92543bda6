"""CycleGAN: a translator and a discriminator for each direction between two modalities."""

import keras
import tensorflow as tf

from keras_unigan.losses import least_squares, sample_cycle
from keras_unigan.models.masked import check_weights
from keras_unigan.models.schedules import constant_then_linear
from keras_unigan.models.stepping import Move
from keras_unigan.models.translation import TranslationGame

RATE = 2e-4
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


@keras.saving.register_keras_serializable(package="keras_unigan")
class CycleGAN(TranslationGame):
    """Translation between two modalities of the plan, there and back, by a network each.

    Order of the moves: both translators together, then the discriminator of the first and of the
    second modality, which see earlier translations too (`ImagePool`). A batch holds all modalities
    of the plan; images of others than the pair are left out, and a role that finds nothing to learn
    from rests. `target` of a batch plays no part: every image goes to the other modality.

    The pool is shared by all replicas. Micro-batches of `compile(accumulate=...)` go through it one
    after the other; over several replicas they so meet it in another order than one whole batch
    would.

    Args:
        generator: `networks.PairTranslator` of the pair.
        discriminator_a: Network from an image of the first modality to patch scores.
        discriminator_b: The same for the second modality.
        plan: `config.Plan`, or its JSON dictionary.
        spatial_dims: 2.
        pair: Names of the two modalities; None takes the first two of the plan.
        adversarial_weight: Weight of the translators' least-squares loss.
        cycle_weight: Weight of the cycles.
        identity_weight: Weight of the distance between an image and what the translator to its own
            modality makes of it; 0 leaves it out. (The authors have half the cycle's weight for
            paintings, and 0 elsewhere.)
        pool_size: Earlier translations kept for each discriminator; 0 keeps none.
        ema_decay: Decay of the weight average of both translators.
        total_steps: Steps that the learning-rate schedule is made for.
        name: Name of the model.

    Reference: Zhu et al. 2017, Unpaired image-to-image translation using cycle-consistent
        adversarial networks, arXiv:1703.10593.

    Raises:
        ValueError: For unknown options, or networks that do not fit them.
    """

    roles = ("generator", "discriminator_a", "discriminator_b")
    terms = (
        *("loss", "adversarial", "cycle", "identity"),
        *("discriminator_a_loss", "discriminator_b_loss"),
    )
    watched = ("real_score", "fake_score", "copy_ratio", "diversity")

    def __init__(
        self,
        generator,
        discriminator_a,
        discriminator_b,
        plan,
        spatial_dims=2,
        pair=None,
        adversarial_weight=1.0,
        cycle_weight=10.0,
        identity_weight=0.0,
        pool_size=50,
        ema_decay=0.999,
        total_steps=1000,
        name="cyclegan",
    ):
        networks = {"generator": generator, "discriminator_a": discriminator_a}
        networks["discriminator_b"] = discriminator_b
        super().__init__(networks, plan, spatial_dims, ema_decay, total_steps, name)
        self.pair = _names(self.plan, pair)
        self.domains = tuple(self.plan.modalities.index(m) for m in self.pair)
        if generator.pair != self.domains:
            raise ValueError(
                f"Expected a generator of the modalities {self.domains} {self.pair}, got one of "
                f"{generator.pair}."
            )
        check_weights(
            adversarial_weight=adversarial_weight,
            cycle_weight=cycle_weight,
            identity_weight=identity_weight,
        )
        if not isinstance(pool_size, int) or pool_size < 0:
            raise ValueError(f"Expected pool_size >= 0, a whole number, got {pool_size!r}.")
        self.adversarial_weight, self.cycle_weight = adversarial_weight, cycle_weight
        self.identity_weight, self.pool_size = identity_weight, pool_size
        self.pools = []
        if pool_size:
            shape = (*self.plan.configuration(spatial_dims).patch_size, generator.channels)
            self.pools = [ImagePool(pool_size, shape, f"pool_{side}") for side in "ab"]

    @classmethod
    def network_arguments(cls, plan, channels=1, **options):
        pair = [plan.modalities.index(m) for m in _names(plan, options.get("pair"))]
        return {
            "generator": {"channels": channels, "pair": pair},
            "discriminator_a": {"channels": channels},
            "discriminator_b": {"channels": channels},
        }

    def default_optimizers(self, learning_rate=None, adversary_rate=None):
        asked = dict.fromkeys(self.roles[1:], adversary_rate) | {"generator": learning_rate}
        rates = {role: RATE if own is None else own for role, own in asked.items()}
        return {
            role: keras.optimizers.Adam(
                constant_then_linear(rates[role], self.total_steps),
                0.5,
                0.999,
                global_clipnorm=5.0 if role == "generator" else None,
            )
            for role in self.roles
        }

    @property
    def memory(self):
        return [variable for pool in self.pools for variable in pool.variables]

    def play(self, batch):
        sides = self.sides(batch)
        some = [self.some(side) for side in sides]
        # 1. Both translators: taken for real, and back again.
        with tf.GradientTape() as tape:
            fakes = self.fakes(self.generator, sides, training=True)
            loss, terms, variety = self.generator_losses(self.generator, sides, fakes, True)
        norm = yield Move(loss, tape, "generator", some[0] | some[1])
        norms = {"generator_gradient_norm": norm}
        # 2. and 3. Each discriminator: real from made, now or earlier.
        scores = []
        for role, side, other, fake, pool in self._judged(sides, fakes):
            if pool is not None:
                places = other["index"][:, None]
                whole = tf.scatter_nd(places, fake, tf.shape(batch["image"]))
                present = tf.scatter_nd(places, other["weight"], tf.shape(batch["domain"]))
                whole = pool.exchange(whole, present > 0, batch["noise"])
                fake = tf.gather(whole, other["index"])
            with tf.GradientTape() as discriminator_tape:
                discriminator_loss, *seen = self.discriminate(role, side, other, fake)
                # Of one side alone there is nothing to tell apart.
                both = some[0] & some[1]
                discriminator_loss = tf.where(both, discriminator_loss, 0.0)
            norm = yield Move(discriminator_loss, discriminator_tape, role, both)
            norms[f"{role}_gradient_norm"] = norm
            terms[f"{role}_loss"] = discriminator_loss
            scores.append(seen)
        return {"loss": loss, **terms, **_means(scores), **variety, **norms}

    def score(self, batch):
        sides = self.sides(batch)
        fakes = self.fakes(self.network, sides, training=False)
        loss, terms, variety = self.generator_losses(self.network, sides, fakes, False)
        scores = []
        for role, side, other, fake, _ in self._judged(sides, fakes):
            terms[f"{role}_loss"], *seen = self.discriminate(role, side, other, fake)
            scores.append(seen)
        terms = {"loss": loss, **terms}
        # Validation goes from volume to volume: one side stands for both. A batch of neither says
        # nothing, and the means leave NaN out.
        present = tf.add_n([tf.cast(self.some(side), "float32") for side in sides])
        factor = tf.where(present > 0, 2.0 / present, float("nan"))
        terms = {name: factor * value for name, value in terms.items()}
        return {**terms, **_means(scores), **variety}, None

    def sides(self, batch):
        """For each modality of the pair, its samples of a batch.

        Where there is none, the batch's first sample stands in, since not every operation takes
        an empty batch; it has the weight 0.

        Returns:
            List of two dictionaries: `index` int32 `(n,)`, their places in the batch, `image`,
            `real`, `source` (-1 where not known) and `weight` float32 `(n,)`.
        """
        image, source, real, domain, _ = self.unpack(batch)
        parts = {"image": image, "real": real, "source": source}
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

    def fakes(self, generator, sides, training):
        """Translations of both sides to the other one."""
        ways = (generator.forth, generator.back)
        return [w(s["image"], training=training) for w, s in zip(ways, sides, strict=True)]

    def _judged(self, sides, fakes):
        """Discriminator, its side, the other side, that side's translations, and their pool."""
        pools = self.pools or (None, None)
        a, b = sides
        return (
            ("discriminator_a", a, b, fakes[1], pools[0]),
            ("discriminator_b", b, a, fakes[0], pools[1]),
        )

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
        weights = side["weight"], other["weight"]
        loss, seen = 0.0, []
        for goal, score, weight, part in zip(
            (1.0, 0.0), parts, weights, (side, other), strict=True
        ):
            loss += 0.5 * self.average(least_squares(score, goal), weight)
            mean = self.average(tf.reduce_mean(score, axis=(1, 2, 3)), weight)
            seen.append(tf.where(self.some(part), mean, float("nan")))
        return loss, *seen

    def generator_losses(self, generator, sides, fakes, training):
        """Loss of both translators, its terms and watched values, scalars."""
        adversarial = back = same = tf.zeros(())
        to_own = (generator.back, generator.forth)
        judges = (self.discriminator_b, self.discriminator_a)
        for side, fake, own, judge in zip(sides, fakes, to_own, judges, strict=True):
            scores, weight = judge(fake, training=True), side["weight"]
            adversarial += self.average(least_squares(scores, 1.0), weight)
            again = own(fake, training=training)
            back += self.average(sample_cycle(side["real"], again), weight)
            if self.identity_weight:
                kept = own(side["image"], training=training)
                same += self.average(sample_cycle(side["real"], kept), weight)
        loss = (
            self.adversarial_weight * adversarial
            + self.cycle_weight * back
            + self.identity_weight * same
        )
        terms = {"adversarial": adversarial, "cycle": back, "identity": same}
        image, source, weight = (
            tf.concat([side[k] for side in sides], axis=0) for k in ("image", "source", "weight")
        )
        counts = [tf.size(side["index"]) for side in sides]
        target = tf.repeat(tf.constant(self.domains[::-1], "int32"), counts)
        # Nothing is asked of a sample that only stands in.
        source = tf.where(weight > 0, source, target)
        return loss, terms, self.variety(image, source, tf.concat(fakes, axis=0), target)

    def call(self, inputs):
        """Translations of the averaged translators.

        Args:
            inputs: Dict with `image` `(batch, *spatial, channels)` and int32 `(batch,)` `domain`
                (-1 unknown) and `target`.

        Returns:
            float32, the shape of the image; see `networks.PairTranslator.translate`.
        """
        return self.network.translate(inputs["image"], inputs["domain"], inputs["target"])

    def get_config(self):
        names = ("adversarial_weight", "cycle_weight", "identity_weight", "pool_size")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "pair": list(self.pair), **own}


def _names(plan, pair):
    """Two modalities of a plan by name; the first two for None."""
    names = tuple(plan.modalities[:PAIR] if pair is None else pair)
    known = [m for m in names if m in plan.modalities]
    if isinstance(pair, str) or len(set(known)) != PAIR or len(names) != PAIR:
        raise ValueError(f"Expected a pair of two of {plan.modalities}, got {pair!r}.")
    return names


def _means(scores):
    """Mean real and fake score over the discriminators that had such images."""
    found = {}
    for name, values in zip(("real_score", "fake_score"), zip(*scores, strict=True), strict=True):
        said = tf.math.is_finite(tf.stack(values))
        # None of them: 0 / 0 is NaN.
        total = tf.reduce_sum(tf.where(said, tf.stack(values), 0.0))
        found[name] = total / tf.reduce_sum(tf.cast(said, "float32"))
    return found
