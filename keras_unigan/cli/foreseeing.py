"""What `--dry-run` says of a preparation: the plan with its reasons, and what the job will take."""

import dataclasses
import os
import tempfile
import time
from pathlib import Path

from keras_unigan.cli.common import need
from keras_unigan.config import Plan, Study


def setting(plan, key):
    """Value of a plan that `reasons` names, e.g. "2d.patch_size"."""
    value = plan.to_dict()
    value = {**value, **value["configurations"]}
    for part in key.split("."):
        value = value[part]
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" if k != "scheme" else v for k, v in value.items())
    return value


def _shown(value):
    """Text of a number, or of one a channel."""
    return "/".join(map(_shown, value)) if isinstance(value, list) else f"{value:.4g}"


def plan_lines(plan, prefix=""):
    """Each value of a plan with its reason; only those of one configuration where it is named.

    Args:
        plan: `config.Plan`.
        prefix: "2d." or "3d.", or empty for all.
    """
    other = {"2d.": "3d.", "3d.": "2d."}.get(prefix, "none")
    kept = {k: why for k, why in plan.reasons.items() if not k.startswith(other)}
    return [f"{key} = {setting(plan, key)}: {why}" for key, why in kept.items()]


def _age():
    """Seconds since this process began, 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def check_room(study, output, limit=None, **choices):
    """Refuses a preparation whose shards will not fit; looks closely only where that may be.

    Args:
        study: Path of the study file.
        output: Folder that the shards are for.
        limit: Number of cases, or None.
        **choices: As of `preparation`.

    Raises:
        CodedError: KUG-T06; else as the jobs.
    """
    from keras_unigan.pipelines import forecast, sources

    if forecast.crowded(sources.load_study(study, limit), output):
        preparation(Study.load(study), output, limit=limit, **choices)


def preparation(study, output, plan=None, memory=None, window=None, limit=None, beam=()):
    """Plans, prepares a few cases in a scratch folder, and writes nothing that stays.

    Args:
        study: `config.Study`.
        output: Folder that the shards are for.
        plan: Path of a `plan.json`, or None to plan now.
        memory: GiB that one training step may take, or None.
        window: Voxels that a CT window is measured on, or None.
        limit: Number of cases, or None.
        beam: Beam options.

    Returns:
        Lines for people, and a dictionary: `cases`, `output`, `plan`, `forecast`.

    Raises:
        CodedError: KUG-T06 when the shards will not fit; else as the jobs.
    """
    age = _age()
    jobs = need("keras_unigan.pipelines.forecast", "pipelines")
    from keras_unigan.pipelines import sources

    with tempfile.TemporaryDirectory() as scratch:
        cases = tuple(
            dataclasses.replace(c, image=study.path(c.image), label=study.path(c.label))
            for c in study.cases
        )
        path = Path(scratch, "study.json")
        dataclasses.replace(study, cases=cases).save(path)
        study = sources.load_study(path, limit)
    seconds, dead = 0.0, 0
    if plan:
        made = Plan.load(plan)
    else:
        options = sources.pipeline_options(list(beam))
        choices = {"memory": memory, "window": window}
        choices = {k: v for k, v in choices.items() if v is not None}
        made, dead, seconds = jobs.make_plan(study, output, options, **choices)
    loading = time.perf_counter()
    # The job loads TensorFlow too, unless the command has done so before.
    from keras_unigan.data import records  # noqa: F401

    loaded = time.perf_counter()
    found = jobs.forecast(study, made, output)
    probe = time.perf_counter() - loaded
    found["seconds"] = round(found["seconds"] + age + seconds + loaded - loading, 2)
    lines = [
        *plan_lines(made),
        f"Would prepare {len(study.cases)} cases into {output}",
        *[f"{dead} training cases cannot be used"] * bool(dead),
        f"time: about {found['seconds']:.0f} s in one process, {seconds:.0f} s of it to measure",
        f"memory: about {found['memory_bytes'] / 2**20:.0f} MiB",
        f"disk: about {found['disk_bytes'] / 2**20:.1f} MiB",
        f"from a probe of {found['probed']} cases in {probe:.0f} s",
    ]
    result = {"cases": len(study.cases), "output": output}
    return lines, {**result, "plan": made.to_dict(), "forecast": found}
