"""Which scheme a modality gets, its range, and the window of a CT whose labels touch bone."""

import numpy as np
import pytest

from keras_unigan import planning
from keras_unigan.config import SCHEMES, Case, Labels, ModalityFingerprint, Study
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.planning import schemes


def make_facts(**changes):
    values = {
        "cases": 4,
        "shapes": ((64, 64, 32),) * 4,
        "spacings": ((1.0, 1.0, 1.0),) * 4,
        "mean": 50.0,
        "sd": 10.0,
        "low": 8.0,
        "high": 90.0,
        "scaled_low": -2.0,
        "scaled_high": 3.0,
        "voxels": {"organ": 10},
    }
    return ModalityFingerprint(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "tags", "setting", "expected", "why"),
    [
        ("ct", {}, None, "ct", "the name 'ct'"),
        ("ct_portal", {}, None, "ct", "the name 'ct_portal'"),
        ("flair", {}, None, "mr", "the name 'flair'"),
        ("pet", {}, None, "pet_suv", "the name 'pet'"),
        ("spect-mibi", {}, None, "spect_counts", "the name"),
        ("xray", {}, None, "xray", "the name"),
        ("us", {}, None, "ultrasound", "the name"),
        ("microscopy", {}, None, "microscopy", "the name"),
        ("scan", {}, None, "mr", '"normalization": {"scan": "…"} in study.json'),
        ("active", {}, None, "mr", "no known kind"),  # "ct" inside a word is no CT
        ("scan", {"ct": 3}, None, "ct", "DICOM tags of 3 of 4 cases"),
        ("ct", {"mr": 4}, None, "mr", "DICOM tags of 4 of 4"),
        ("pet", {"pet_suv": 3, "spect_counts": 1}, None, "spect_counts", "SUV in 1 of 4 series"),
        ("ct", {"mr": 2, "xray": 2}, None, "ct", "tags disagree (2 mr, 2 xray), so the name"),
        ("ct", {"ct": 4}, "microscopy", "microscopy", "named in study.json"),
    ],
)
def test_setting_before_tags_before_name(name, tags, setting, expected, why):
    found, reason = planning.scheme_of(name, setting, make_facts(schemes=tags))
    assert found == expected
    assert why in reason


def test_pet_in_other_units_is_no_suv():
    facts = make_facts(high=12_000.0)
    found, why = planning.scheme_of("pet", None, facts)
    assert (found, "foreground up to 12000 is no SUV" in why) == ("spect_counts", True)
    assert planning.scheme_of("pet", "pet_suv", facts)[0] == "pet_suv"


# What -1 and 1 are, in the data set's mean 50 and deviation 10.
RANGES = {
    "ct": (8, 90),
    "mr": (30, 80),
    "xray": (30, 80),
    "pet_suv": (0, 90),
    "spect_counts": (0, 80),
    "ultrasound": (30, 80),
    "microscopy": (30, 80),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_range_and_reason_of_each_scheme(scheme):
    reasons = {}
    found = schemes.normalization("scan", scheme, make_facts(), "foreground", reasons)
    ends = found.mean + found.sd * found.low, found.mean + found.sd * found.high
    assert ends == pytest.approx(RANGES[scheme])
    assert reasons["normalization.scan"].startswith("named in study.json; ")
    with pytest.raises(CodedError, match="KUG-D12 scan: found foreground intensities from 8 to 90"):
        schemes.normalization("scan", scheme, make_facts(sd=0.0), "foreground", reasons)


def brain_in_a_skull(size=40):
    """A ball of 20 to 40 HU, its label one voxel too large, in a shell of 700 HU."""
    axis = np.arange(size) - size / 2
    radius = np.sqrt(sum(np.square(a) for a in np.meshgrid(axis, axis, axis)))
    rng = np.random.default_rng(0)
    image = np.full(radius.shape, -1000, np.int16)
    image[radius < 16] = 700
    image[radius < 13] = rng.integers(20, 41, radius.shape)[radius < 13]
    label = (radius < 14).astype(np.uint8)
    affine = np.eye(4)
    return nifti.Volume(image, affine), nifti.Volume(label, affine)


def test_core_of_a_label_that_touches_bone():
    labels = Labels(classes={"brain": (1,)})
    study = Study("s", ("ct",), labels, (Case("a", "ct", "a.nii", split="train"),))
    facts = planning.measure(*brain_in_a_skull(), labels, "a_ct")
    fingerprint = planning.fingerprint(study, {"ct": facts})
    found = fingerprint.modalities["ct"]
    assert (found.low, found.high) == (20, 700)
    assert 0.5 < found.core_share < 0.8
    assert (found.core_low, found.core_high) == (20, 40)

    def window(name):
        plan = planning.make_plan(study, fingerprint, window=name)
        n = plan.normalization["ct"]
        ends = n.mean + n.sd * n.low, n.mean + n.sd * n.high
        return ends, plan.reasons["normalization.ct"]

    ends, why = window("foreground")
    assert ends == pytest.approx((20, 700))
    assert "span 20 to 40" in why
    assert "--window core" in why
    ends, why = window("core")
    assert ends == pytest.approx((20, 40))
    assert "(of all: 20 to 700)" in why
    with pytest.raises(CodedError, match=r"KUG-T02 window: .*did you mean 'core'"):
        planning.make_plan(study, fingerprint, window="cores")


def test_tags_of_files_are_counted_over_cases():
    labels = Labels(classes={"organ": (1,)})
    rng = np.random.default_rng(0)
    volumes = [
        nifti.Volume(rng.uniform(1, 9, (6, 6, 6)), np.eye(4), scheme=scheme)
        for scheme in ("pet_suv", "spect_counts", "pet_suv", None)
    ]
    facts = [planning.measure(v, None, labels, f"c{i}") for i, v in enumerate(volumes)]
    study = Study("s", ("scan",), labels, ())
    for order in (facts, facts[::-1]):
        total = planning.Facts()
        for one in order:
            total = planning.merge(total, one)
        found = planning.fingerprint(study, {"scan": total}).modalities["scan"]
        assert found.schemes == {"pet_suv": 2, "spect_counts": 1}
    assert planning.scheme_of("scan", None, found)[0] == "spect_counts"


def test_thin_labels_have_no_core():
    facts = make_facts(core_share=0.02, core_low=20.0, core_high=40.0)
    reasons = {}
    for window in schemes.WINDOWS:
        found = schemes.normalization("ct", None, facts, window, reasons)
        assert found.mean + found.sd * found.high == pytest.approx(90)
    assert "only 2% of it lie away from its border" in reasons["normalization.ct"]


def test_core_of_a_mask_by_hand():
    mask = np.zeros((9, 9, 1), bool)
    mask[1:8, 1:8] = True
    assert planning.core_of(mask).sum() == 3 * 3
    # The image's end is no border: nobody knows what lies behind it.
    mask = np.zeros((9, 9, 9), bool)
    mask[:, :, :5] = True
    assert planning.core_of(mask).sum() == 9 * 9 * 3


def test_window_of_semi_real_brains(unigan_data):
    """Labels of a brain touch the skull: all of them span 8 to 270 HU, their inside 8 to 46."""
    labels = Labels(classes={"tissue": (1, 2, 3, 4, 5, 6, 7)})
    folder = unigan_data / "brain_semireal_t1_t2_flair_ct" / "unpaired_train"
    image = sorted(folder.glob("*_CT.nii.gz"))[0]
    label = image.with_name(image.name.replace("_CT", "_seg"))
    facts = planning.measure(nifti.read(image), nifti.read(label), labels, "a_ct")
    assert facts.histogram.percentile(99.5) > 200
    assert facts.core.percentile(99.5) < 60
    assert facts.core.percentile(0.5) == pytest.approx(8, abs=3)
