"""The registry: its numbers are those of the networks, and every entry says all there is to say."""

import dataclasses
import inspect

import checks
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from checks import cheap_weights, parameters

from keras_unigan import config, training
from keras_unigan.config import TrainOptions
from keras_unigan.models import MODELS
from keras_unigan.networks import NETWORKS
from keras_unigan.networks.counting import network_macs
from keras_unigan.systems import SYSTEMS

# What the comments of the table say of an entry that is not of one channel and two classes.
ONE_CLASS = ("segan", "segan_paper", "segan_isic", "segan_scalar", "stargan+segan")
OTHER = {**{name: {"classes": 1} for name in ONE_CLASS}, "ummkd": {"channels": 3}}
QUICK = ("joint", "nnunet_plain", "gan", "segan", "stargan")
# The list of the bench, and what else there is.
ASKED = (
    *("individual", "joint", "joint_cond", "ds_norm", "early_fusion", "late_fusion"),
    *("cross_modality_conv", "shared_latent", "dual_stream", "y_shape", "padnet", "se_unet"),
    *("synseg", "ummkd", "sifa", "nnunet_plain", "synth_contrast", "segan", "segan_scalar"),
    *("stargan+segan", "gan", "uagan", "unified_gan", "unigan", "stargan"),
)


def test_every_system_that_is_asked_for_is_there():
    assert set(ASKED) <= set(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_entry_is_complete(name):
    system = SYSTEMS[name]
    asked = {"summary", "networks", "game", "paper", "year", "needs", "spatial_dims"}
    assert set(system) - {"train"} == asked | {"parameters", "total_parameters", "macs"}
    alone = len(system["networks"]) == 1
    assert (system["total_parameters"] == system["parameters"]) is alone
    assert system["total_parameters"] >= system["parameters"]
    assert set(system["needs"]) == {"labels", "pairing", "modality"}
    assert all(system["needs"].values())
    assert set(system["spatial_dims"]) <= {2, 3}
    kind, options = system["game"]
    assert set(options) <= set(inspect.signature(MODELS[kind].__init__).parameters)
    assert list(system["networks"]) == list(MODELS[kind].given())
    for network, arguments in system["networks"].values():
        assert set(arguments) <= set(inspect.signature(NETWORKS[network].__init__).parameters)
    own = set(system.get("train", {})) - {"batch_of_modality"}
    # Only what a run can leave open: `TrainOptions` says None there.
    assert all(getattr(TrainOptions(), key) is None for key in own)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SYSTEMS]
)
def test_numbers_are_those_of_the_network(monkeypatch, name):
    cheap_weights(monkeypatch)
    system = SYSTEMS[name]
    kind, own = system["networks"][MODELS[system["game"][0]].roles[0]]
    arguments = {"channels": 1, "classes": 2, "domains": 3, "patch_size": (128, 128), **own}
    arguments |= OTHER.get(name, {})
    asked = inspect.signature(NETWORKS[kind].__init__).parameters
    network = NETWORKS[kind](**{k: v for k, v in arguments.items() if k in asked})
    assert parameters(network) == system["parameters"]
    assert network_macs(network, (128, 128)) == system["macs"]


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name, system in SYSTEMS.items()
        if len(system["networks"]) > 1
    ],
)
def test_totals_are_those_of_all_networks(monkeypatch, name):
    """Of the game as it would train, its main network as wide as the table says."""
    cheap_weights(monkeypatch)
    system = SYSTEMS[name]
    game = MODELS[system["game"][0]]
    labels = {"regions" if name in ONE_CLASS else "classes": {"organ": (1,)}}
    plan = checks.plan(config.Labels(**labels), ("t1", "t2", "ct"), size=128)
    flat = dataclasses.replace(plan.configuration(2), strides=((2, 2),) * 4)
    plan = dataclasses.replace(plan, configurations={"2d": flat})
    kind, own = system["networks"][game.roles[0]]
    width = inspect.signature(NETWORKS[kind].__init__).parameters["filters"].default
    network = {"filters": own.get("filters", width)}
    model = training.build_model(name, plan, network=network, compile=False)
    counts = {role: parameters(getattr(model, role)) for role in game.given()}
    assert counts[game.roles[0]] == system["parameters"]
    assert sum(counts.values()) == system["total_parameters"]
