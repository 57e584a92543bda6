"""Whole files through the exported graph: equal to local inference, or refused."""

import gzip

import hypothesis
import nibabel
import numpy as np
import pytest
from hypothesis import strategies

from keras_unigan import inference
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.exporting.requests import phantom, strings
from keras_unigan.serving.servable import Servable
from keras_unigan.serving.status import ServingError

SHAPE = (9, 7, 5)


@pytest.fixture(scope="module")
def servable(exported):
    loaded = Servable(exported[2] / "1", use_gpu=False)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def local(exported):
    """Function of a volume and a modality giving its label map and probabilities."""
    network, plan, _, _ = exported
    predictor = inference.Predictor(network, plan)
    return lambda volume, modality=None: inference.segment_volume(volume, plan, predictor, modality)


def ask(servable, data, modality=""):
    inputs = {"nifti_bytes": strings(data), "modality": strings(modality)}
    return servable.predict("segment_nifti", inputs)["label_map_nifti_bytes"][0]


def scan(shape=SHAPE, dtype=np.int16, affine=None, slope=None, axes=3):
    """Bytes of a synthetic scan."""
    affine = np.diag([-1.1, 1.4, 2.5, 1.0]) if affine is None else affine
    array = phantom(shape)
    array = array % 256 if dtype == np.uint8 else array
    array = (array / 7 if np.dtype(dtype).kind == "f" else array).astype(dtype)
    array = array.reshape(array.shape[:axes])
    image = nibabel.Nifti1Image(array, affine)
    image.header["descrip"] = b"a name of somebody"
    data = bytearray(image.to_bytes())
    if slope is not None:
        data[112:120] = np.array(slope, "<f4").tobytes()
    return bytes(data)


def check(answer, data, local, modality=None):
    """The answer is what local inference gives, with the header's geometry."""
    volume = nifti.read_bytes(data, "scan")
    wanted, probabilities = local(volume, modality)
    best = np.sort(probabilities, -1)
    sure = nifti.from_ras(best[..., -1] - best[..., -2] > 1e-5, volume)
    found = nifti.read_bytes(answer, "answer")
    np.testing.assert_array_equal(found.array[sure], wanted[sure])
    for begin, end in ((39, 56), (76, 108), (123, 124), (252, 328)):
        assert answer[begin:end] == data[begin:end]
    header = nibabel.Nifti1Header(answer[:348])
    fields = ("datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter")
    assert [float(header[name]) for name in fields] == [2, 8, 352, 1, 0]
    assert b"somebody" not in answer
    assert len(answer) == 352 + wanted.size


def oblique(degrees, flips=(1, 1, 1)):
    turn = np.radians(degrees)
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.diag([1.1, 1.6, 2.9])
    affine[:3, :3] *= flips
    return affine


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"dtype": np.uint8}, False),
        ({"dtype": np.int16}, True),
        ({"dtype": np.uint16, "slope": (0.0, 3.0)}, False),
        ({"dtype": np.int32, "slope": (1.0, -1024.0)}, True),
        ({"dtype": np.float32, "slope": (np.nan, 1.0)}, False),
        ({"dtype": np.float64, "slope": (0.37, 5.0)}, True),
        ({"affine": np.eye(4)[[2, 0, 1, 3]] * [1.5, 1.0, 3.0, 1.0]}, False),
        ({"affine": oblique(28, (-1, 1, -1))}, False),
        ({"shape": (16, 16, 1), "axes": 2}, False),
        ({"shape": (1, 18, 16)}, False),
        ({"shape": (21, 34, 3), "affine": np.diag([0.6, 3.0, 3.0, 1.0])}, False),
    ],
)
def test_files_are_answered_as_local_inference_does(servable, local, options, packed):
    data = scan(**options)
    sent = gzip.compress(data, 1) if packed else data
    check(ask(servable, sent, "ct"), data, local, "ct")


def test_a_qform_alone_and_spacing_alone_give_the_grid(servable, local):
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_qform(oblique(35), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    voxels = phantom(SHAPE).astype("<i2").tobytes(order="F")
    data = header.binaryblock + b"\0" * 4 + voxels
    check(ask(servable, data), data, local)
    header["qform_code"] = 0
    data = header.binaryblock + b"\0" * 4 + voxels
    check(ask(servable, data), data, local)


def test_several_files_are_answered_in_order(servable):
    files = [scan(), scan((6, 5, 4)), gzip.compress(scan())]
    inputs = {"nifti_bytes": strings(*files), "modality": strings("ct", "t1", "")}
    found = servable.predict("segment_nifti", inputs)["label_map_nifti_bytes"]
    for data, name, answer in zip(files, ("ct", "t1", ""), found, strict=True):
        assert answer == ask(servable, data, name)


def put(data, place, value, kind="<i2"):
    """The file with one field changed."""
    changed = np.array(value, kind).tobytes()
    return data[:place] + changed + data[place + len(changed) :]


# No time of day in it: workers that collect the same tests must find the same names.
PACKED = gzip.compress(scan(), mtime=0)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty, or gzip"),
        (b"\x1f\x8b" + b"garbage" * 9, "empty, or gzip"),
        (PACKED[:-3], "empty, or gzip"),
        (PACKED[:200], "empty, or gzip"),
        (PACKED[:300] + b"\0\0" + PACKED[302:], "empty, or gzip"),
        (PACKED + PACKED, "empty, or gzip"),
        (b"garbage", "are no NIfTI-1 file"),
        (scan()[:-1], "fewer bytes than its header claims"),
        (scan()[:200], "are no NIfTI-1 file"),
        (bytes(nibabel.Nifti2Image(phantom(SHAPE), np.eye(4)).to_bytes()), "NIfTI-2 is not"),
        (
            nibabel.Nifti1Header(endianness=">").binaryblock + bytes(400),
            "Big-endian NIfTI is not supported",
        ),
        (scan(axes=3, shape=(6, 5, 4)).replace(b"n+1\0", b"ni1\0"), "are no NIfTI-1 file"),
        (put(scan(), 40, [4, 9, 7, 1, 5]), "more than one volume"),
        (put(put(scan(), 70, 128), 72, 24), "Voxel type not supported"),
        (put(scan(), 72, 8), "bits per voxel do not fit the voxel type"),
        (put(scan(), 40, [3, 9, -7, 5]), "sizes in the header are not those of a volume"),
        (put(scan(), 40, [3, 32767, 32767, 32767]), "fewer bytes than its header claims"),
        (put(scan(), 40, 0), "sizes in the header are not those of a volume"),
        (put(scan(), 108, 4.0, "<f4"), "no place where voxels can begin"),
        (put(scan(), 108, np.nan, "<f4"), "no place where voxels can begin"),
        (put(scan(), 112, [2.0, np.inf], "<f4"), "scale in the header is not finite"),
        (put(scan(), 280, np.zeros(12), "<f4"), "not positive, or the affine has no inverse"),
        (put(scan(), 280, np.inf, "<f4"), "the affine is not finite"),
        (
            put(put(scan(), 252, [1, 0]), 256, [3.0, 0, 0], "<f4"),
            "qform in the header is no rotation",
        ),
        (put(scan(), 280, [1e6, 0, 0, 0, 0, 1e6, 0, 0, 0, 0, 1e6, 0], "<f4"), "too large"),
        (scan()[:352] + bytes(2 * 9 * 7 * 5), "same value everywhere"),
        (put(scan(dtype=np.float32), 352 + 40, np.nan, "<f4"), "NaN or infinite values"),
    ],
)
def test_other_files_are_refused_in_words_without_payload(servable, data, text):
    with pytest.raises(ServingError, match=text) as caught:
        ask(servable, data)
    assert caught.value.code == "INVALID_ARGUMENT"
    for payload in ("somebody", "garbage", "32767"):
        assert payload not in caught.value.message


def numbers(place, values, count):
    """Some int16 of a header from a place on."""
    return strategies.tuples(strategies.just(place), strategies.lists(values, max_size=count))


VOXEL_TYPES = strategies.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 2304])
mutations = strategies.lists(
    strategies.tuples(strategies.integers(0, 355), strategies.integers(0, 255)), max_size=3
)
fields = strategies.one_of(
    numbers(40, strategies.integers(-2, 9), 8),
    numbers(70, VOXEL_TYPES, 2),
    numbers(252, strategies.integers(-1, 5), 2),
)


@hypothesis.given(mutations, strategies.lists(fields, max_size=2), strategies.integers(0, 40))
@hypothesis.settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_changed_headers_are_refused_or_answered_as_local_inference_does(
    servable, local, changes, values, cut
):
    data = scan((6, 5, 4))
    for place, value in changes:
        data = data[:place] + bytes([value]) + data[place + 1 :]
    for place, found in values:
        data = put(data, place, found) if found else data
    data = data[: len(data) - cut] if cut > 30 else data
    answer, refused = None, None
    try:
        answer = ask(servable, data)
    except ServingError as error:
        refused = error
    if refused is None:
        check(answer, data, local)
    else:
        assert refused.code == "INVALID_ARGUMENT"
        assert refused.message.startswith("assertion failed")


def test_local_inference_refuses_what_is_refused_here_for_its_content(local):
    """The two agree on files that are whole, but hold nothing to segment."""
    for data in (scan()[:352] + bytes(2 * 9 * 7 * 5), scan()[:-1], b"garbage"):
        with pytest.raises(CodedError):
            local(nifti.read_bytes(data, "scan"))
