"""The planner: exact facts, and decisions on numbers chosen by hand."""

import functools
import itertools
import math

import numpy as np
import pytest

from keras_unigan import planning
from keras_unigan.config import Case, Fingerprint, Labels, ModalityFingerprint, Plan, Study
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError

LABELS = Labels(classes={"organ": (1, 3), "lesion": (2,)})


def make_study(modalities=("t1",), labels=LABELS):
    cases = tuple(Case(f"s{m}", m, f"{m}.nii", split="train") for m in modalities)
    return Study("study", tuple(modalities), labels, cases)


def make_facts(shapes, spacings=None, **changes):
    shapes = tuple(shapes)
    values = {
        "cases": len(shapes),
        "shapes": shapes,
        "spacings": tuple(spacings or [(1.0, 1.0, 1.0)] * len(shapes)),
        "mean": 50.0,
        "sd": 10.0,
        "low": 30.0,
        "high": 90.0,
        "scaled_low": -2.0,
        "scaled_high": 3.0,
        "voxels": {"organ": 10, "lesion": 5},
    }
    return ModalityFingerprint(**{**values, **changes})


def plan_of(*facts, memory=planning.MEMORY_GIB, modalities=None):
    modalities = modalities or [f"m{i}" for i in range(len(facts))]
    fingerprint = Fingerprint(dict(zip(modalities, facts, strict=True)))
    return planning.make_plan(make_study(modalities), fingerprint, memory)


def measured(seed, labelled=True, scale=1):
    rng = np.random.default_rng(seed)
    image = np.zeros((8, 9, 10))
    image[1:7, 2:8, 1:9] = rng.integers(-900, 3000, (6, 6, 8)) * scale
    label = np.zeros(image.shape, np.uint8)
    label[2:5, 3:6, 2:6] = rng.choice([1, 2, 3], (3, 3, 4))
    label[5, 5, 5] = 255
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    label_volume = nifti.Volume(label, affine) if labelled else None
    case = f"case{seed}"
    return planning.measure(nifti.Volume(image, affine), label_volume, LABELS, case), image, label


def test_facts_of_labelled_voxels_are_exact():
    facts, image, label = measured(0)
    values = image[(label > 0) & (label < 255)].astype(float)
    got = planning.fingerprint(make_study(), {"t1": facts}).modalities["t1"]
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert got.sd == pytest.approx(values.std(), rel=1e-9)
    assert got.low == pytest.approx(np.percentile(values, 0.5))
    assert got.high == pytest.approx(np.percentile(values, 99.5))
    organ, lesion = np.isin(label, (1, 3)).sum(), (label == 2).sum()
    assert got.voxels == {"organ": organ, "lesion": lesion}
    assert (got.shapes, got.spacings) == (((6, 6, 8),), ((1.0, 1.5, 2.0),))
    inside = image[image != 0].astype(float)
    expected = (np.percentile(inside, (0.5, 99.5)) - inside.mean()) / inside.std()
    np.testing.assert_allclose((got.scaled_low, got.scaled_high), expected, rtol=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_without_labels_the_foreground_is_what_is_not_background(empty):
    facts, image, label = measured(1, labelled=False)
    if empty:
        volume = nifti.Volume(image, np.eye(4))
        facts = planning.measure(volume, nifti.Volume(0 * label, np.eye(4)), LABELS, "case1")
    inside = image[image != 0]
    assert facts.count == inside.size
    assert facts.total == inside.sum()


def test_merging_makes_no_difference_to_order_or_grouping():
    # Sums of thirds depend on their order unless they are exact.
    parts = [measured(i, scale=1 / 3)[0] for i in range(4)]
    results = set()
    for order in itertools.permutations(parts):
        left = functools.reduce(planning.merge, order)
        pairs = planning.merge(planning.merge(*order[:2]), planning.merge(*order[2:]))
        for facts in (left, pairs, planning.merge(planning.Facts(), left)):
            closed = planning.fingerprint(make_study(), {"t1": facts})
            results.add(repr(closed))
    assert len(results) == 1


def test_modality_without_a_usable_case():
    facts = measured(0)[0]
    study = make_study(("ct", "t1"))
    with pytest.raises(CodedError, match="KUG-D14 study: found no usable training case of ct"):
        planning.fingerprint(study, {"t1": facts})


def test_spacing_is_the_median_over_all_modalities():
    spacings = [(1.0, 1.0, 2.0), (1.2, 1.0, 2.5), (2.0, 1.0, 3.0)]
    plan = plan_of(
        make_facts([(90, 90, 40)] * 2, spacings[:2]), make_facts([(90, 90, 40)], spacings[2:])
    )
    assert plan.spacing == (1.2, 1.0, 2.5)
    assert plan.nearest_axis is None
    medians = "medians: m0 1.1 x 1 x 2.25 mm, m1 2 x 1 x 3 mm"
    assert (
        plan.reasons["spacing"]
        == f"median of 3 training cases, one grid for all modalities ({medians})"
    )


def test_a_coarse_axis_is_refined_and_taken_by_nearest_neighbour():
    spacings = [(1.0, 1.0, s) for s in (3.0, 5.0, 5.0, 6.0, 6.0)]
    plan = plan_of(make_facts([(200, 200, 30)] * 5, spacings))
    assert plan.spacing == (1.0, 1.0, pytest.approx(np.percentile([3, 5, 5, 6, 6], 10)))
    assert plan.nearest_axis == 2
    assert "10th percentile" in plan.reasons["spacing"]
    # Coarse, but with as many voxels: the spacing stays.
    plan = plan_of(make_facts([(60, 60, 60)] * 5, spacings))
    assert plan.spacing == (1.0, 1.0, 5.0)
    assert plan.nearest_axis == 2


def test_single_slices_have_no_third_dimension():
    plan = plan_of(make_facts([(150, 140, 1)] * 3, [(1.0, 1.0, 10.0)] * 3))
    assert set(plan.configurations) == {"2d"}
    assert plan.nearest_axis is None
    assert "no 3d: the median volume has 1 slices" in plan.reasons["2d.patch_size"]


@pytest.mark.parametrize("name", ["ct", "cta"])
def test_ct_is_scaled_by_the_data_set_and_the_rest_by_its_own(name):
    facts = make_facts([(64, 64, 32)])
    plan = plan_of(facts, facts, modalities=[name, "flair"])
    ct, mr = plan.normalization[name], plan.normalization["flair"]
    assert (ct.scheme, ct.mean, ct.sd, ct.low, ct.high) == ("ct", 50.0, 10.0, -2.0, 4.0)
    assert (mr.scheme, mr.low, mr.high) == ("mr", -2.0, 3.0)
    assert "Hounsfield" in plan.reasons[f"normalization.{name}"]


@pytest.mark.parametrize(
    "changes", [{"sd": 0.0, "low": 50.0, "high": 50.0}, {"scaled_low": 1.0, "scaled_high": 1.0}]
)
def test_constant_foreground(changes):
    with pytest.raises(CodedError, match="KUG-D12 m0: found foreground intensities"):
        plan_of(make_facts([(64, 64, 32)], **changes))


def test_patch_of_a_brain_is_modest():
    plan = plan_of(make_facts([(140, 170, 140)] * 20))
    flat, deep = plan.configuration(2), plan.configuration(3)
    assert flat.patch_size == (144, 176)
    assert flat.strides == ((2, 2),) * 4
    assert 2 <= flat.batch_size <= 16
    assert deep.batch_size == 2
    assert max(deep.patch_size) <= 64
    for configuration in (flat, deep):
        used = planning.activation_bytes(configuration.patch_size, configuration.strides)
        assert used * configuration.batch_size <= planning.MEMORY_GIB * 2**30


def test_more_memory_gives_larger_patches_and_batches():
    facts = make_facts([(140, 170, 140)] * 20)
    small, large = plan_of(facts), plan_of(facts, memory=16)
    voxels = [math.prod(p.configuration(3).patch_size) for p in (small, large)]
    assert voxels[1] > 4 * voxels[0]
    assert large.configuration(2).batch_size > small.configuration(2).batch_size
    assert "shrunk until two samples fit into 1 GiB" in small.reasons["3d.patch_size"]
    # No reason says that something fits which does not.
    least = plan_of(facts, memory=0.01)
    assert least.configuration(3).patch_size == (16, 16, 16)
    assert ": the least, and yet two need" in least.reasons["3d.patch_size"]
    assert "the least" not in small.reasons["3d.patch_size"] + large.reasons["3d.patch_size"]
    with pytest.raises(CodedError, match=r"KUG-T02 memory: found 0, expected more than 0 GiB"):
        plan_of(facts, memory=0)
    with pytest.raises(CodedError, match=r"KUG-T06 .* 4 MiB for two samples of 16 x 16.*at most 1"):
        plan_of(facts, memory=0.001)


def test_batch_is_at_most_a_twentieth_of_the_voxels_but_at_least_two():
    plan = plan_of(make_facts([(64, 64, 20)] * 2))
    assert plan.configuration(2).batch_size == int(0.05 * 2 * 64 * 64 * 20 / 64**2)
    assert plan_of(make_facts([(64, 64, 4)])).configuration(2).batch_size == 2


def test_huge_slices_are_capped():
    plan = plan_of(make_facts([(9000, 3000, 1)]), memory=10_000)
    assert math.prod(plan.configuration(2).patch_size) <= 2048**2
    assert ", then shrunk to at most 4194304 voxels;" in plan.reasons["2d.patch_size"]


@pytest.mark.parametrize(
    ("patch", "spacing", "expected"),
    [
        ((64, 64), (1, 1), ((2, 2),) * 4),
        ((16, 16), (1, 1), ((2, 2),) * 2),
        ((64, 16), (1, 1), ((2, 2), (2, 2), (2, 1), (2, 1))),
        ((64, 64, 16), (1, 1, 5), ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))),
        ((64, 64, 5), (1, 1, 5), ((2, 2, 1),) * 4),
        ((7, 7), (1, 1), ()),
    ],
)
def test_strides(patch, spacing, expected):
    strides = planning.strides_of(patch, spacing)
    assert strides == expected
    for axis, size in enumerate(patch):
        assert size % math.prod(s[axis] for s in strides) == 0


def test_activations_by_hand():
    # 16 x 16 voxels, one pooling: 5 maps of 32 at 256 voxels, 2 of 64 at 64 voxels.
    got = planning.activation_bytes((16, 16), ((2, 2),))
    assert got == (5 * 32 * 256 + 2 * 64 * 64) * 32


def test_plan_is_json(tmp_path):
    plan = plan_of(make_facts([(100, 90, 50)] * 3), make_facts([(80, 90, 60)] * 3))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    keys = {"spacing", "2d.patch_size", "3d.batch_size", "normalization.m0"}
    assert keys <= set(plan.reasons)
