"""Package mapping; everything else about the distribution is in pyproject.toml.

`pipelines/` and `serving/` stand at the top of the tree and install as `keras_unigan.pipelines` and
`keras_unigan.serving`. Beam's `--setup_file` needs this file to exist.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["keras_unigan", "keras_unigan.*"]),
        "keras_unigan.pipelines",
        "keras_unigan.serving",
    ],
    package_dir={"keras_unigan.pipelines": "pipelines", "keras_unigan.serving": "serving"},
)
