"""SYSTEMS: which networks play which game under one name; plain data.

`training.build_model` reads this table, and `unigan models` prints it. Network entries name a class
of `networks.NETWORKS` and the constructor arguments that differ from its defaults; `game` names a
class of `models.MODELS`. What depends on the data (channels, classes, strides) comes from the plan.
"""

from typing import Any

SYSTEMS: dict[str, dict[str, Any]] = {
    "joint": {
        "summary": "One U-Net for all modalities: the plain baseline.",
        "networks": {"segmentor": ("UNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Ronneberger et al., U-Net, MICCAI 2015, arXiv:1505.04597",
        "year": 2015,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        # U-Net of width 32 and 4 levels, one channel in, two classes out (methods.md §2.7).
        "parameters": 7_759_554,
    },
    "segan": {
        "summary": "SegAN in practice: concat critic, spectral norm, Dice and cross-entropy.",
        "networks": {
            "segmentor": ("SegANSegmentor", {"filters": 64}),
            "critic": ("SegANCritic", {"constraint": "spectral"}),
        },
        # Without the cross-entropy a class that is lost early stays lost (decision 0004).
        "game": ("SegAN", {"ce_weight": 1.0}),
        "paper": "Xue et al., SegAN, Neuroinformatics 2018, arXiv:1706.01805",
        "year": 2018,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        # Segmentor, one channel in and one out (methods.md §2.3).
        "parameters": 4_674_369,
    },
    "segan_paper": {
        "summary": "SegAN as published: product masks, eq. 3 layers, clipped critic, no Dice.",
        "networks": {
            "segmentor": ("SegANSegmentor", {"filters": 64}),
            "critic": ("SegANCritic", {"constraint": "clip"}),
        },
        "game": (
            "SegAN",
            {
                "mask_mode": "multiply",
                "shift": False,
                "include_input": False,
                "constraint": "clip",
                "lambda_dice": 0.0,
            },
        ),
        "paper": "Xue et al., SegAN, Neuroinformatics 2018, arXiv:1706.01805",
        "year": 2018,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
    },
}
