"""The same bytes from every runner that can be had here; Dataflow as far as its job graph."""

import base64
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from keras_unigan.data import phantoms
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import preprocess, sources

DASK = """
import json, sys
from dask.distributed import LocalCluster
from keras_unigan.pipelines import preprocess

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = f"--dask_client_address={cluster.scheduler_address}"
        print(json.dumps(preprocess.run([*sys.argv[1:], "--runner=DaskRunner", address])))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return phantoms.write_study(folder, ("ct", "t1"), 5, size=32, depth=8, seed=2)


@pytest.fixture(scope="module")
def direct(study, tmp_path_factory):
    """What one worker of the DirectRunner writes."""
    folder = tmp_path_factory.mktemp("direct") / "shards"
    summary = preprocess.run([*flags(study, folder), "--runner=DirectRunner"])
    assert summary["counters"]["workers"] == 1
    return folder


def flags(study, folder):
    return ["--study", study.path("study.json"), "--output", str(folder), "--cases_per_shard", "1"]


def contents(folder):
    """All that decides what is trained on: name -> bytes."""
    wanted = ("plan.json", "fingerprint.json", "shards.json")
    names = [p for p in folder.rglob("*") if p.suffix == ".gz" or p.name in wanted]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}


def last_json(text):
    """The summary after whatever workers said."""
    return json.loads(text[text.index("{") :])


def test_two_processes_write_the_same_bytes(study, direct, tmp_path):
    command = [sys.executable, "-m", "keras_unigan.pipelines.preprocess"]
    command += [*flags(study, tmp_path / "shards"), "--plan", str(direct / "plan.json")]
    command += ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["counters"]["workers"] == 2
    reference = contents(direct)
    del reference["fingerprint.json"]
    assert contents(tmp_path / "shards") == reference


def test_two_dask_workers_write_the_same_bytes(study, direct, tmp_path):
    pytest.importorskip("distributed")
    script = tmp_path / "on_dask.py"
    script.write_text(DASK)
    command = [sys.executable, str(script), *flags(study, tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["counters"]["workers"] == 2
    assert contents(tmp_path / "shards") == contents(direct)


def has_gcp():
    try:
        return importlib.util.find_spec("google.cloud.dataflow") is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def checkout(root, tmp_path):
    """A copy of what `--setup_file` packs: packing leaves files behind."""
    for name in ("keras_unigan", "pipelines", "serving"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, tmp_path / "checkout" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


def documented(root):
    """The Dataflow command of pipelines/README.md, its variables filled in: list of words."""
    text = (root / "pipelines" / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```bash")[1:]]
    (command,) = [block for block in blocks if "--runner DataflowRunner" in block]
    values = {"BUCKET": "bucket", "PROJECT": "project", "REGION": "europe-west1"}
    values["IMAGE"] = "registry/keras-unigan:1"
    return shlex.split(string.Template(command.replace("\\\n", "")).substitute(values))


def dry_run(root, checkout, study, plan):
    """The dry run of pipelines/README.md with local files: (summary, job graph)."""
    python, *words = documented(root)
    assert python == "python"
    words[words.index("--study") + 1], words[words.index("--plan") + 1] = str(study), str(plan)
    words += ["--dry_run", "True", "--dataflow_job_file", "job.json"]
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return last_json(done.stdout), json.loads((checkout / "job.json").read_text())


@pytest.mark.skipif(not has_gcp(), reason='Dataflow needs pip install "keras-unigan[gcp]"')
def test_dataflow_job_graph(root, study, direct, checkout):
    """The graph names image, package and steps, and hardly grows with the cases."""
    path, plan = study.path("study.json"), direct / "plan.json"
    summary, graph = dry_run(root, checkout, path, plan)
    assert (summary["cases"], summary["shards"]) == (10, 6)
    (environment,) = graph["components"]["environments"].values()
    assert environment["urn"] == "beam:env:docker:v1"
    assert b"registry/keras-unigan:1" in base64.b64decode(environment["payload"])
    staged = [base64.b64decode(d["rolePayload"]) for d in environment["dependencies"]]
    assert any(b"workflow.tar.gz" in name for name in staged)
    steps = {t["uniqueName"] for t in graph["components"]["transforms"].values()}
    assert {"Shards", "Spread", "Write", "Gather", "WriteResult"} <= steps

    data = json.loads(pathlib.Path(path).read_text())
    more = [{**data["cases"][0], "subject": f"s{n:05d}", "split": "train"} for n in range(20_000)]
    (checkout / "big.json").write_text(json.dumps({**data, "cases": [*data["cases"], *more]}))
    big, _ = dry_run(root, checkout, checkout / "big.json", plan)
    assert big["shards"] == 2506
    # Dataflow takes graphs of some megabytes: 100 000 cases must fit.
    assert (big["graph_bytes"] - summary["graph_bytes"]) / 20_000 < 10


def test_the_documented_command_holds_flags_that_exist(root):
    _, module, job, *words = documented(root)
    assert (module, job) == ("-m", "keras_unigan.pipelines.preprocess")
    own, rest = preprocess.arguments(words)
    assert (own.study, own.output) == ("gs://bucket/study/study.json", "gs://bucket/shards")
    options = PipelineOptions(rest)
    known = options.get_all_options()
    found = {word.removeprefix("--") for word in rest if word.startswith("--")}
    assert found <= set(known)
    assert known["number_of_worker_harness_threads"] == 1


def test_flex_template_parameters_are_flags_of_the_job(root):
    """Launchers hand each parameter over as `--name=value`."""
    template = json.loads((root / "pipelines" / "metadata.json").read_text())
    samples = {"study": "gs://b/study.json", "output": "gs://b/s", "plan": "gs://b/plan.json"}
    samples |= {"memory": "4.5", "cases_per_shard": "16", "limit": "3", "window": "core"}
    samples |= {"resume": "true", "overwrite": "false"}
    words = []
    for parameter in template["parameters"]:
        name = parameter["name"]
        assert parameter["label"]
        assert parameter["helpText"]
        assert all(re.search(pattern, samples[name]) for pattern in parameter["regexes"])
        words.append(f"--{name}={samples[name]}")
    own, rest = preprocess.arguments(words)
    assert rest == []
    assert set(vars(own)) == set(samples)
    assert (own.resume, own.overwrite, own.memory, own.limit) == (True, False, 4.5, 3)
    needed = {p["name"] for p in template["parameters"] if not p.get("isOptional")}
    assert needed == {"study", "output"}


def test_worker_image_has_the_beam_of_the_tests(root):
    text = (root / "pipelines" / "Dockerfile").read_text()
    constraints = (root / "constraints.txt").read_text()
    (beam,) = re.findall(r"^ARG BEAM=(\S+)$", text, re.M)
    assert f"apache-beam=={beam}\n" in constraints
    copied = re.findall(r"^COPY (.+) \S+$", text, re.M)
    assert all((root / name).exists() for names in copied for name in names.split())


def test_dataflow_without_its_extra(study, direct, tmp_path):
    if has_gcp():
        pytest.skip("the extra is there")
    argv = [*flags(study, tmp_path / "s"), "--plan", str(direct / "plan.json")]
    argv += ["--runner=DataflowRunner", "--dry_run=True", "--project=project"]
    with pytest.raises(CodedError, match=r"KUG-E01 --runner DataflowRunner: .*keras-unigan\[gcp"):
        preprocess.run([*argv, "--region=r", "--temp_location=gs://bucket/tmp"])


def test_options_that_beam_refuses(study, direct, tmp_path):
    argv = [*flags(study, tmp_path / "s"), "--plan", str(direct / "plan.json")]
    with pytest.raises(CodedError, match=r"KUG-T02 options of Beam: .*Invalid Project ID \(p\)"):
        preprocess.run([*argv, "--runner=DataflowRunner", "--project=p"])
    with pytest.raises(CodedError, match=r"KUG-T02 options of Beam: .*NoRunner"):
        preprocess.run([*argv, "--runner=NoRunner"])
    with pytest.raises(CodedError, match=r"KUG-T02 --dry_run: found FnApiRunner, expected --runn"):
        preprocess.run([*argv, "--dry_run=True"])
    with pytest.raises(
        CodedError, match=r"KUG-T02 .*--cases_per_shad \(did you mean 'cases_per_shard'\?\)"
    ):
        preprocess.run([*argv, "--cases_per_shad=2"])
    with pytest.raises(CodedError, match=r"KUG-T02 .*--direct_num_worker \(did you mean 'direct_n"):
        preprocess.run([*argv, "--direct_num_worker", "2"])
    assert not (tmp_path / "s").exists()


def test_runners_by_their_short_names():
    found = {}
    for name in ("DirectRunner", "DaskRunner", "FlinkRunner", "SparkRunner"):
        options = sources.pipeline_options([f"--runner={name}"])
        found[name] = options.view_as(StandardOptions).runner
    assert found.pop("DirectRunner") == "FnApiRunner"
    assert found.pop("DaskRunner") == "apache_beam.runners.dask.dask_runner.DaskRunner"
    # Beam knows these itself.
    assert all(name == runner for name, runner in found.items())
