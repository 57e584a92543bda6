"""What a wheel and an sdist hold: `pipelines/` and `serving/` under the package's name."""

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

SOURCES = ("keras_unigan", "pipelines", "serving")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
WANTED = (
    "pipelines/preprocess.py",
    "serving/server.py",
    "serving/models.config",
    "serving/docker-compose.yml",
)


@pytest.fixture(scope="module")
def checkout(root, tmp_path_factory):
    """A copy of what a distribution is made of: building leaves files behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(root / name, folder / name)
    return folder


def test_sdist_as_beam_makes_it(checkout, tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = [name.split("/", 1)[-1] for name in tar.getnames()]
    assert {"setup.py", "LICENSE", *WANTED} <= set(names)


def test_wheel_maps_both_folders_into_the_package(checkout, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"keras_unigan/{name}" for name in WANTED} <= set(names)
    templates = ("report.html.j2", "report.js", "report.css", "viewer.html", "niivue_host.js")
    assert {f"keras_unigan/templates/{name}" for name in templates} <= set(names)
    assert not [n for n in names if n.startswith(SOURCES[1:]) or n.endswith((".nii", ".nii.gz"))]


@pytest.mark.parametrize("job", ["fingerprint", "preprocess"])
def test_jobs_run_as_scripts_and_as_modules(root, job):
    for command in (
        [str(root / "pipelines" / f"{job}.py")],
        ["-m", f"keras_unigan.pipelines.{job}"],
    ):
        done = subprocess.run(
            [sys.executable, *command, "--help"],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "--study" in done.stdout
