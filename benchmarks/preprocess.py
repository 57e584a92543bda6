"""Times our preprocessing beside MONAI's and nnU-Net's on the same volumes; one JSON line.

Each side runs in processes of its own, on one thread, in turn, `--repeats` times: `transforms`
(read, RAS+, crop, resample, normalise; ours, in NumPy), `job` (the whole Beam job, which writes
compressed shards with checksums on top, and has the fixed cost of starting Beam), `monai`
(LoadImaged, Orientationd, CropForegroundd, Spacingd with its default kernels, bilinear and nearest,
NormalizeIntensityd; ours are cubic and linear one-hot; nothing is written), `monai_saved` (with
SaveImaged of both as .nii.gz on top, which nibabel packs at level 1, as we do) and `nnunet`
(`DefaultPreprocessor.run_case`; cubic splines and linear one-hot; nothing is written). A
core-second is one second of CPU time of the process, imports left out, so other work on the machine
counts little.

`--scaling` measures the job alone, in one and in two processes: volumes a second by the clock
between the first and the last shard, so without the start of the processes. Believe it only on a
machine that has nothing else to do.

MONAI and nnU-Net do not belong into our environment. Give the Python of one that has them:

    python -m venv /tmp/others && /tmp/others/bin/pip install torch monai nibabel nnunetv2
    python benchmarks/preprocess.py --others /tmp/others/bin/python
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDES = ("transforms", "job", "monai", "monai_saved", "nnunet")
OURS = SIDES[:2]
DATASET = "brain_tumour_4mod_tcga"


def plan_of(spec):
    """A plan of one modality at the wanted spacing."""
    from keras_unigan.config import Configuration, Labels, Normalization, Plan

    names = {f"label_{v}": (v,) for v in spec["labels"]}
    return Plan(
        study="benchmark",
        modalities=("mr",),
        labels=Labels(classes=names),
        spacing=tuple(spec["spacing"]),
        nearest_axis=None,
        normalization={"mr": Normalization("mr", 0.0, 1.0, -2.0, 2.0)},
        configurations={"2d": Configuration((64, 64), 2, ((2, 2), (2, 2)), 8)},
    )


def transforms(spec):
    """Ours without the job: what the other sides do, with a cubic kernel."""
    import numpy as np

    from keras_unigan.data import preprocessing, volumes

    plan = plan_of(spec)

    def one(image, label):
        pair = [volumes.read(path) for path in (image, label)]
        prepared = preprocessing.prepare(pair[0], plan, pair[1], image)
        mean, sd, low, high = prepared.statistics
        return np.clip((prepared.image - mean) / sd, (low - mean) / sd, (high - mean) / sd)

    return one


def job(spec):
    """The Beam job on one worker; all volumes are one call."""
    from keras_unigan.config import Case, Study
    from keras_unigan.data import records  # noqa: F401  TensorFlow is not to be timed
    from keras_unigan.pipelines import preprocess

    plan = plan_of(spec)

    def all_of_them(pairs):
        with tempfile.TemporaryDirectory() as folder:
            cases = [
                Case(f"s{n}", "mr", image, label, "train") for n, (image, label) in enumerate(pairs)
            ]
            Study("benchmark", plan.modalities, plan.labels, tuple(cases)).save(f"{folder}/s.json")
            plan.save(f"{folder}/plan.json")
            argv = ["--study", f"{folder}/s.json", "--plan", f"{folder}/plan.json"]
            summary = preprocess.run([*argv, "--output", f"{folder}/shards"])
            assert summary["splits"]["train"]["mr"] == len(pairs)

    return all_of_them


def monai(spec, folder=None):
    """The equivalent chain of MONAI's dictionary transforms, which writes to a folder if given."""
    import torch
    from monai import transforms as mt

    torch.set_num_threads(1)
    keys = ["image", "label"]
    steps = [
        mt.LoadImaged(keys, image_only=True),
        mt.EnsureChannelFirstd(keys),
        mt.Orientationd(keys, axcodes="RAS"),
        mt.CropForegroundd(
            keys,
            source_key="image",
            select_fn=lambda x: x != x.flatten()[0],
            allow_smaller=True,
        ),
        mt.Spacingd(keys, pixdim=spec["spacing"], mode=("bilinear", "nearest")),
        mt.NormalizeIntensityd("image", nonzero=True),
    ]
    for key, dtype in (("image", "float32"), ("label", "uint8")) if folder else ():
        saved = {"output_dir": folder, "output_dtype": dtype, "output_postfix": key}
        steps.append(mt.SaveImaged(key, **saved, resample=False, print_log=False))
    chain = mt.Compose(steps)
    return lambda image, label: chain({"image": image, "label": label})["image"].numpy()


def monai_saved(spec):
    """MONAI's chain, with its results on disk."""
    return monai(spec, spec["folder"])


def nnunet(spec):
    """nnU-Net's own steps for one case, with the settings that its planner writes for MR."""
    import torch
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    resampling = "resample_data_or_seg_to_shape"
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "architecture": {},
        "batch_size": 2,
        "patch_size": [64, 64, 64],
        "spacing": spec["spacing"][::-1],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True, "order": 1},
    }
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_Benchmark",
            "plans_name": "benchmark",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "experiment_planner_used": "ExperimentPlanner",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"3d_fullres": configuration},
        }
    )
    names = {"background": 0} | {f"label_{v}": v for v in spec["labels"]}
    dataset = {"labels": names, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    preprocessor, chosen = DefaultPreprocessor(False), plans.get_configuration("3d_fullres")

    def one(image, label):
        return preprocessor.run_case([image], label, plans, chosen, dataset)[0]

    return one


def work(spec):
    """Runs one side on all volumes; prints CPU seconds, wall seconds, peak memory and shapes."""
    sides = (transforms, job, monai, monai_saved, nnunet)
    run = dict(zip(SIDES, sides, strict=True))[spec["side"]](spec)
    if spec["side"] != "job":
        run(*spec["volumes"][0])  # what is made once (caches, tables) is not timed
    shapes, start, cpu = [], time.perf_counter(), time.process_time()
    if spec["side"] == "job":
        run(spec["volumes"])
    else:
        shapes = [list(run(*pair).shape[-3:]) for pair in spec["volumes"]]
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - start}
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print("\n" + json.dumps({**seconds, "peak_mib": round(peak), "shapes": shapes}))


def measure(python, spec):
    """Runs one side in a new process; its figures, or a text that says why there are none."""
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [python, __file__, "--work", json.dumps({**spec, "folder": folder})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def spread(values, digits=3):
    return [round(v, digits) for v in (min(values), statistics.median(values), max(values))]


def pairs_of(options):
    """Paths of image and label map; the same ones again where there are fewer than wanted."""
    root = pathlib.Path(options.data).resolve()
    rows = csv.DictReader((root / "manifest.csv").open())
    found = [
        [str(root / r["image"]), str(root / r["label"])]
        for r in rows
        if r["dataset"] == options.dataset and r["label"]
    ]
    return [found[n % len(found)] for n in range(options.volumes)]


def scaling(spec, workers):
    """Volumes a second of the job in some processes, between its first and its last shard."""
    from keras_unigan.config import Case, Study

    plan = plan_of(spec)
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            Case(f"s{n:03d}", "mr", image, label, "train")
            for n, (image, label) in enumerate(spec["volumes"])
        ]
        Study("benchmark", plan.modalities, plan.labels, tuple(cases)).save(f"{folder}/s.json")
        plan.save(f"{folder}/plan.json")
        command = [sys.executable, "-m", "keras_unigan.pipelines.preprocess"]
        command += ["--study", f"{folder}/s.json", "--plan", f"{folder}/plan.json"]
        command += ["--output", f"{folder}/shards", "--cases_per_shard", "1"]
        command += ["--direct_running_mode", "multi_processing"]
        command += ["--direct_num_workers", str(workers)]
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        done = sorted(p.stat().st_mtime for p in pathlib.Path(folder).glob("shards/done/*/*.json"))
        (entry,) = json.loads(pathlib.Path(folder, "shards", "run.json").read_text())
    return {
        "volumes_per_second": (len(done) - 1) / (done[-1] - done[0]),
        "volumes_per_core_second": len(done) / entry["counters"]["core_seconds"],
        "workers": entry["counters"]["workers"],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--others", help="Python with MONAI and nnU-Net; left out: only ours")
    parser.add_argument("--volumes", type=int, default=16, help="repeated where there are fewer")
    parser.add_argument("--scaling", action="store_true", help="one process against two")
    parser.add_argument("--spacing", type=float, default=1.2, help="mm, of all axes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default=os.environ.get("UNIGAN_DATA", "../shared/data"))
    parser.add_argument("--dataset", default=DATASET, help="of the folder's manifest.csv")
    parser.add_argument("--labels", default="1,2,4", help="values in its label maps")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(json.loads(options.work))
    pairs = pairs_of(options)
    spec = {"volumes": pairs, "spacing": [options.spacing] * 3}
    spec["labels"] = [int(v) for v in options.labels.split(",")]
    if options.scaling:
        return print(json.dumps({"benchmark": "scaling", **{n: scaling(spec, n) for n in (1, 2)}}))
    pythons = {side: sys.executable if side in OURS else options.others for side in SIDES}
    found, skipped = {side: [] for side in SIDES}, {}
    for _ in range(options.repeats):
        for side in SIDES:
            if side in skipped:
                continue
            if pythons[side] is None:
                skipped[side] = "no --others given"
                continue
            result = measure(pythons[side], {**spec, "side": side})
            if isinstance(result, str):
                skipped[side] = result
            else:
                found[side].append(result)
    rates = {s: [len(pairs) / r["cpu"] for r in runs] for s, runs in found.items() if runs}
    peaks = {}
    for volumes in (pairs[:1], pairs * 2):
        result = measure(sys.executable, {**spec, "side": "job", "volumes": volumes})
        peaks[len(volumes)] = result if isinstance(result, str) else result["peak_mib"]
    summary = {
        "benchmark": "preprocess",
        "volumes": len(pairs),
        "dataset": options.dataset,
        "spacing": options.spacing,
        "volumes_per_core_second": {s: spread(v) for s, v in rates.items()},
        "wall_seconds": {s: spread([r["wall"] for r in found[s]], 2) for s in rates},
        "peak_mib": {s: max(r["peak_mib"] for r in found[s]) for s in rates},
        "job_peak_mib_by_volumes": peaks,
        "shapes": {s: found[s][0]["shapes"][:1] for s in rates},
        "ratio": {
            f"{ours}_to_{other}": spread(
                [a / b for a, b in zip(rates[ours], rates[other], strict=True)], 2
            )
            for ours in OURS
            for other in SIDES[2:]
            if ours in rates and other in rates
        },
        "skipped": skipped,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
