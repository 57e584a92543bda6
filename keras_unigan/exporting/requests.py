"""Synthetic requests of exported models, for warm-up and for checks; never data of a patient."""

import numpy as np

from keras_unigan.data import records


def example_inputs(plan, names, dims, sides=None):
    """One synthetic request per signature, for warm-up and for checks; never data of a patient.

    Args:
        plan: `config.Plan`.
        names: Signatures wanted.
        dims: Spatial dimensions of the network.
        sides: Spatial size of images; None takes the patch of the plan.

    Returns:
        Signature -> inputs (name -> array).
    """
    sides = tuple(sides or plan.configuration(dims).patch_size)
    image = noise((1, *sides, plan.inputs(dims)))
    modality = strings(plan.modalities[0])
    requests = {
        "serving_default": {"image": image},
        "describe": {"request": np.zeros(1, np.int64)},
        "segment": {
            "image": image,
            "modality": modality,
            "statistics": np.broadcast_to(
                np.float32([500.0, 250.0, 5.0, 995.0]), (1, *plan.statistics_shape)
            ),
        },
        "translate": {
            "image": image,
            "modality": modality,
            "target": strings(plan.modalities[-1]),
        },
        "classify_modality": {"image": image},
        "synthesize": {"seed": np.array([[1, 2]], np.int64), "modality": modality},
    }
    volume = phantom((*sides, 3)[:3])
    requests["segment_volume"] = {
        "volume": volume[None],
        "spacing": np.float32([plan.spacing]),
        "modality": modality,
    }
    requests["segment_nifti"] = {
        "nifti_bytes": strings(encode(volume.astype(np.int16), plan.spacing)),
        "modality": strings(""),
    }
    requests["serve_examples"] = {"examples": strings(example(volume, plan))}
    return {name: requests[name] for name in names}


def noise(shape):
    """Synthetic intensities, float32."""
    return np.random.default_rng(0).uniform(0, 1000, shape).astype(np.float32)


def phantom(shape):
    """Synthetic volume, float32 whole numbers: noise in a ball on a background of 0."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape])
    inside = np.moveaxis(sum(g**2 for g in grid), 0, 1) < 0.9
    return np.where(inside, 1 + np.floor(noise(shape)), 0).astype(np.float32)


def strings(*values):
    """Object array of bytes: NumPy's own bytes type would drop trailing zeros."""
    array = np.empty(len(values), object)
    array[:] = [v if isinstance(v, bytes) else v.encode() for v in values]
    return array


def encode(volume, spacing):
    """Bytes of a `.nii` of a volume with a spacing in mm."""
    from keras_unigan.data import nifti

    return nifti.encode(volume, affine=np.diag([*spacing, 1.0]))


def example(volume, plan):
    """Serialised record of a prepared volume, as shards hold it."""
    from keras_unigan.config import Case
    from keras_unigan.data import preprocessing

    prepared = preprocessing.Prepared(
        image=volume,
        label_map=None,
        statistics=preprocessing.statistics(volume),
        affine=np.diag([*plan.spacing, 1.0]),
        box=tuple(slice(0, n) for n in volume.shape),
        ras_shape=volume.shape,
    )
    case = Case("synthetic", plan.modalities[0], "synthetic.nii")
    return records.to_example(case, prepared)
