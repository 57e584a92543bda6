"""Jobs touch files through Beam's file systems alone: here one that lives in memory."""

import io
import json
import pathlib

import nibabel as nib
import numpy as np
import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

from keras_unigan.config import Case
from keras_unigan.data import nifti, phantoms, records
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import files, fingerprint, preprocess, sources


class Memory(FileSystem):
    """`memory://bucket/name`: an object store, without folders, permissions or a disk."""

    objects: dict = {}

    @classmethod
    def scheme(cls):
        return "memory"

    def has_dirs(self):
        return False

    def mkdirs(self, path):
        raise AssertionError("an object store has no folders")

    def join(self, basepath, *paths):
        return "/".join((basepath.rstrip("/"), *paths))

    def split(self, path):
        return path.rpartition("/")[0], path.rpartition("/")[2]

    def _list(self, dir_or_prefix):
        for path in sorted(self.objects):
            if path.startswith(dir_or_prefix):
                yield self.metadata(path)

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path]), 0.0)

    def open(self, path, mime_type=None, compression_type=None):
        if path not in self.objects:
            raise BeamIOError(f"no object {path}")
        return io.BytesIO(self.objects[path])

    def create(self, path, mime_type=None, compression_type=None):
        return _Writer(self.objects, path)

    def rename(self, source_file_names, destination_file_names):
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            assert destination not in self.objects, "what is there must be deleted first"
            self.objects[destination] = self.objects.pop(source)

    def exists(self, path):
        return path in self.objects

    def delete(self, paths):
        for path in paths:
            del self.objects[path]

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    checksum = last_updated = size = copy


class _Writer(io.BytesIO):
    def __init__(self, objects, path):
        super().__init__()
        self.objects, self.path = objects, path

    def close(self):
        if not self.closed:
            self.objects[self.path] = self.getvalue()
        super().close()


@pytest.fixture
def store():
    """The objects of an empty store."""
    Memory.objects.clear()
    yield Memory.objects
    Memory.objects.clear()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return phantoms.write_study(folder, ("ct", "t1"), 4, size=32, depth=8, seed=2)


def upload(folder, store, prefix):
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            store[f"{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


def test_the_job_needs_no_disk_of_its_own(study, store, tmp_path):
    local = tmp_path / "shards"
    preprocess.run(["--study", study.path("study.json"), "--output", str(local)])
    upload(study.folder, store, "memory://a/study")
    argv = ["--study", "memory://a/study/study.json", "--output", "memory://b/shards"]
    before = set(tmp_path.rglob("*"))
    summary = preprocess.run(argv)
    assert (summary["dead_letters"], summary["output"]) == (0, "memory://b/shards")
    assert set(tmp_path.rglob("*")) == before
    made = {n.removeprefix("memory://b/shards/"): d for n, d in store.items() if "//b/" in n}
    names = [p for p in local.rglob("*") if p.is_file()]
    assert set(made) == {p.relative_to(local).as_posix() for p in names}
    for name in ("plan.json", "fingerprint.json", "shards.json"):
        assert made[name] == (local / name).read_bytes()
    for shard in records.Manifest.load(local).shards:
        assert made[shard.file] == (local / shard.file).read_bytes()

    with pytest.raises(CodedError, match=r"KUG-E02 memory://b/shards/shards.json"):
        preprocess.run(argv)
    del store[f"memory://b/shards/{shard.file}"]
    store["memory://b/shards/train/.t1.123.part"] = b"half"
    counters = preprocess.run([*argv, "--resume"])["counters"]
    assert (counters["shards"], counters["shards_kept"]) == (1, len(made) // 2 - 3)
    assert {n for n in store if "//b/" in n} == {f"memory://b/shards/{name}" for name in made}
    preprocess.run([*argv, "--overwrite", "--plan", "memory://b/shards/plan.json"])
    assert store[f"memory://b/shards/{shard.file}"] == made[shard.file]
    argv = ["--study", "memory://a/study/study.json", "--output", "memory://b/f.json"]
    assert fingerprint.run(argv)["dead_letters"] == 0
    assert store["memory://b/f.json"] == made["fingerprint.json"]


def test_studies_that_cannot_be_read(store):
    with pytest.raises(CodedError, match=r"KUG-D01 memory://a/n.json: found no readable file"):
        sources.load_study("memory://a/n.json")
    store["memory://a/bad.json"] = b"{"
    with pytest.raises(CodedError, match=r"KUG-D08 memory://a/bad.json: found text that is not J"):
        sources.load_study("memory://a/bad.json")
    with pytest.raises(CodedError, match=r"KUG-E01 nowhere://a/b.json: found no file system"):
        sources.load_study("nowhere://a/b.json")
    with pytest.raises(CodedError, match=r"KUG-E01 nowhere://a/s/shards.json: .*apache-beam\[aws"):
        preprocess.run(["--study", "memory://a/bad.json", "--output", "nowhere://a/s"])


def test_scans_of_several_files(store, tmp_path):
    """Both halves of a pair, and all files of a DICOM series, come along."""
    pytest.importorskip("pydicom")
    import dicoms

    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    pair = nib.Nifti1Pair(array, affine)
    pair.to_filename(tmp_path / "in[1].hdr")
    dicoms.write_series(tmp_path / "series", array, affine)
    upload(tmp_path, store, "memory://a/x")
    case = Case("s", "t1", "memory://a/x/in[1].hdr", "memory://a/x/series")
    image, label = sources.read_case(case)
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_array_equal(nifti.to_ras(label).array, nifti.to_ras(image).array)
    here = Case("s", "t1", str(tmp_path / "in[1].hdr"), str(tmp_path / "series"))
    with sources.at_hand(case) as copies:
        assert pathlib.Path(copies.image).is_file()
        whole = sources.digest(copies)
        assert whole == sources.digest(here)
    assert not pathlib.Path(copies.image).exists()
    half = tmp_path / "in[1].img"
    half.write_bytes(half.read_bytes()[:-1] + b"x")
    assert sources.digest(here)[0] != whole[0]


def test_errors_name_the_remote_file(store):
    store["memory://a/scan.nii"] = b"no scan"
    for name, code in (("scan.nii", "KUG-D07"), ("none.nii", "KUG-D01"), ("none", "KUG-D01")):
        with pytest.raises(CodedError, match=f"{code} memory://a/{name}: "):
            sources.read_case(Case("s", "t1", f"memory://a/{name}"))


def test_work_lists(tmp_path):
    items = [{"case": "ä" * n} for n in range(5)]
    data, places = files.worklist(items)
    files.write_bytes(tmp_path / "work", data)
    assert [files.read_item(tmp_path / "work", place) for place in places] == items
    assert [json.loads(line) for line in data.splitlines()] == items
    assert files.worklist([]) == (b"", [])


def test_listing_takes_names_as_they_are(store, tmp_path):
    for name in ("a[1]/x.gz", "a[1]/b/y.gz", "a1/z.gz"):
        files.write_bytes(tmp_path / name, b"1")
    upload(tmp_path, store, "memory://c")
    for folder in (tmp_path / "a[1]", "memory://c/a[1]"):
        assert list(files.listing(folder)) == ["b/y.gz", "x.gz"]
    assert files.listing(tmp_path / "none") == files.listing("memory://none") == {}
