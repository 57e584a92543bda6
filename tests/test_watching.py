"""Health and pictures of a real, tiny StarGAN: whole, and with one thing broken on purpose."""

import io
import json
import types

import checks
import keras
import matplotlib.image
import numpy as np
import pytest
import rich.console

from keras_unigan import callbacks, health
from keras_unigan.models.stargan import StarGAN
from keras_unigan.networks import StarGANDiscriminator, StarGANGenerator

PLAN = checks.plan(modalities=("ct", "t1"))


def batch(seed):
    """Discs, bright in one modality and dark in the other."""
    generator = np.random.default_rng(seed)
    data = checks.batch(PLAN, 4, seed)
    x, y = np.meshgrid(*[np.linspace(-1, 1, 16)] * 2, indexing="ij")
    images = []
    for domain in data["domain"]:
        centre = generator.uniform(-0.4, 0.4, 2)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < generator.uniform(0.1, 0.3)
        noise = generator.normal(0, 0.05, disc.shape)
        images.append(np.where(disc, 0.7, -0.6) * (1 - 2 * domain) + noise)
    image = np.stack(images)[..., None].astype("float32")
    whole = {"image": image, "real": image, "known": np.ones(4, bool)}
    return {**data, **whole, "target": 1 - data["domain"]}


def play(folder, damage=None, rates=(1e-3, 1e-3)):
    """Trains for three epochs; what `health.json` then says, and the game."""
    keras.utils.set_random_seed(1)
    networks = {"filters": 4, "blocks": 1}, {"filters": 4, "layers": 2, "patch_size": (16, 16)}
    game = StarGAN(
        StarGANGenerator(**networks[0]), StarGANDiscriminator(**networks[1]), PLAN, n_critic=1
    )
    batches = [batch(seed) for seed in range(3)]
    if damage:
        damage(game, batches)
    optimizers = [keras.optimizers.Adam(rate, 0.5) for rate in rates]
    # Eagerly: tracing would take longer than these few steps.
    game.compile(dict(zip(game.roles, optimizers, strict=True)), run_eagerly=True)
    budget = callbacks.Budget(None, 10.0)
    history = callbacks.History(folder / "history.csv", budget.state)
    watch = callbacks.Health(folder / "health.json", history)
    game.fit(
        checks.dataset(batches),
        epochs=3,
        steps_per_epoch=1,
        callbacks=[budget, history, watch],
        verbose=0,
        shuffle=False,
    )
    found = json.loads((folder / "health.json").read_text())
    assert found["epoch"] == 3
    assert found["level"] == watch.verdict.level
    # What was written is what the file of the run gives again.
    again = callbacks.History(folder / "history.csv", budget.state)
    assert health.verdict(again.rows, 2) == watch.verdict
    return found, game


def test_a_whole_game_is_ok(tmp_path):
    found, game = play(tmp_path)
    assert found == {"level": "OK", "epoch": 3, "signs": []}
    samples = checks.dataset([batch(7)]).take(2)
    grid = callbacks.TranslationGrid(tmp_path, samples, PLAN, every=2)
    grid.set_model(game)
    for epoch in range(3):
        grid.on_epoch_end(epoch)
    grid.on_train_end()
    made = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert made == ["translations_00002.png", "translations_00003.png"]
    last = (tmp_path / "translations.png").read_bytes()
    assert last == (tmp_path / "samples" / made[1]).read_bytes()
    picture = matplotlib.image.imread(tmp_path / "translations.png")
    assert picture.shape[0] > picture.shape[1] > 200  # two rows a modality, three columns
    assert picture[..., :3].std() > 0.1


def constant_image(game, batches):
    kernel = game.generator.get_layer("translated").kernel
    kernel.assign(0 * kernel)


def silent_discriminator(game, batches):
    for variable in game.discriminator.weights:
        variable.assign(0 * variable)


def copying_generator(game, batches):
    own = game.generator.translate

    def translate(image, source, target, training=False):
        return image + 1e-3 * own(image, source, target, training)

    game.generator.translate = translate


def broken_image(game, batches):
    for key in ("image", "real"):
        batches[2][key] = np.where(np.arange(4).reshape(-1, 1, 1, 1) == 2, np.nan, batches[2][key])


@pytest.mark.parametrize(
    ("damage", "options", "sign", "term"),
    [
        (constant_image, {"rates": (1e-12, 1e-3)}, "collapse", "diversity"),
        (
            silent_discriminator,
            {"rates": (1e-3, 1e-12)},
            "dead critic",
            "discriminator_gradient_norm",
        ),
        (copying_generator, {}, "identity copy", "copy_ratio"),
        (None, {"rates": (1e-3, 1.0)}, "exploding critic", "discriminator_gradient_norm"),
        (None, {"rates": (1e-3, 1e3)}, "non-finite", "skipped"),
        (broken_image, {}, "non-finite", "skipped"),
    ],
)
def test_what_is_broken_is_named(damage, options, sign, term, tmp_path):
    found, _ = play(tmp_path, damage, **options)
    assert found["level"] == "FAIL"
    first = found["signs"][0]
    assert (first["sign"], first["term"]) == (sign, term)
    assert first["remedy"] == health.REMEDIES[sign]


def test_a_game_without_translator_draws_nothing(tmp_path):
    grid = callbacks.TranslationGrid(tmp_path, [batch(0)], PLAN)
    grid.set_model(keras.Sequential())
    grid.on_epoch_end(0)
    assert list(tmp_path.iterdir()) == []


def test_volumes_show_the_slice_with_the_most_foreground(tmp_path):
    plan = checks.plan(spatial_dims=3)
    data = checks.batch(plan, 4)
    data["label_map"][:] = 0
    data["label_map"][0, 3:9, 3:9, 5] = 1
    data["label_map"][3, 3:9, 3:9, 11] = 255
    grid = callbacks.TranslationGrid(tmp_path, [data], plan)
    assert list(grid.domains) == [0, 1]
    assert grid.slices[0] == 5
    np.testing.assert_array_equal(grid._flat(grid.images)[0], data["image"][0, :, :, 5, 0])

    class Game(keras.Model):
        translator = StarGANGenerator(filters=2, blocks=1, spatial_dims=3)

    grid.set_model(Game())
    grid.on_epoch_end(0)
    assert (tmp_path / "translations.png").exists()


def test_the_progress_line_ends_with_the_verdict(tmp_path):
    rows = [{"epoch": i + 1, "step": 9 * i + 9, "diversity": 0.0} for i in range(3)]
    history = types.SimpleNamespace(rows=rows[:1])
    watch = callbacks.Health(tmp_path / "health.json", history)
    text = io.StringIO()
    budget = callbacks.Budget(100)
    budget.on_train_begin()
    console = rich.console.Console(file=text, width=400)
    progress = callbacks.Progress(budget, 100, console, watch)
    progress.on_train_begin()
    for epoch in range(2):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_end(0, {"loss": 1.0})
        history.rows = rows if epoch else []
        watch.on_epoch_end(epoch)
        progress.on_epoch_end(epoch, {"loss": 1.0})
    first, second, remedy = text.getvalue().splitlines()
    assert first.endswith("loss 1  health OK")
    assert "health FAIL collapse since epoch 1 (diversity): translations of a batch" in second
    assert remedy == f"  try: {health.REMEDIES['collapse']}"
