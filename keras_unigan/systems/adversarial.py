"""Systems in which networks play against one another."""

import math
from typing import Any

from keras_unigan.systems.needs import (
    GAMES,
    GAMES_TOLD,
    LABELS,
    ONE_LABELLED,
    PAIR,
    PAIRS_MADE,
    TRANSLATED,
)

ADVERSARIAL: dict[str, dict[str, Any]] = {
    "gan": {
        "summary": "Pairs of image and masks from noise: the founding game; segments nothing.",
        "networks": {
            "generator": ("PairGenerator", {"filters": 64}),
            "discriminator": ("PairDiscriminator", {}),
        },
        "game": ("GAN", {}),
        "paper": "Goodfellow et al., GAN, NeurIPS 2014, arXiv:1406.2661",
        "year": 2014,
        "needs": PAIRS_MADE,
        "spatial_dims": (2, 3),
        # Generator of patches of 128, four levels, two classes, three modalities.
        "parameters": 11_244_099,
        "total_parameters": 14_036_484,
        "macs": 1_911_652_352,
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
        "needs": LABELS,
        "spatial_dims": (2, 3),
        # Segmentor, one channel in and one out (methods.md §2.3).
        "parameters": 4_674_369,
        "total_parameters": 5_332_225,
        "macs": 1_935_671_296,
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
        "needs": LABELS,
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
        "total_parameters": 5_331_585,
        "macs": 1_935_671_296,
    },
    "segan_isic": {
        "summary": "SegAN, skin-lesion form: global convolutions, flat multi-scale loss.",
        "networks": {
            "segmentor": ("SegANISICSegmentor", {"filters": 64}),
            "critic": ("SegANISICCritic", {"filters": 64}),
        },
        "game": (
            "SegAN",
            {
                "mask_mode": "multiply",
                "weighting": "flat",
                "constraint": "clip",
                "ce_weight": 1.0,
                # 25 epochs of the paper: 2000 images (ISIC 2017) in batches of 36.
                "halve_every": 25 * math.ceil(2000 / 36),
            },
        ),
        "paper": "Xue et al., Adversarial learning with multi-scale loss for skin lesion "
        "segmentation, ISBI 2018",
        "year": 2018,
        "needs": LABELS,
        "spatial_dims": (2,),
        # Segmentor, one channel in and one out (methods.md §2.4).
        "parameters": 156_228_992,
        "total_parameters": 165_615_808,
        "macs": 18_854_707_200,
    },
    "segan_scalar": {
        "summary": "SegAN's segmentor against an ordinary real-or-fake critic: the control.",
        "networks": {
            "segmentor": ("SegANSegmentor", {"filters": 64}),
            "critic": ("SegANScalarCritic", {}),
        },
        "game": ("SegANScalar", {"ce_weight": 1.0}),
        "paper": "Goodfellow et al., GAN, NeurIPS 2014, arXiv:1406.2661 (the loss)",
        "year": 2014,
        "needs": LABELS,
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
        "total_parameters": 5_332_482,
        "macs": 1_935_671_296,
    },
    "cyclegan": {
        "summary": "Translation between two modalities by a network for each direction.",
        "networks": {
            "generator": ("PairTranslator", {"filters": 64}),
            "discriminator_a": ("PatchDiscriminator", {}),
            "discriminator_b": ("PatchDiscriminator", {}),
        },
        "game": ("CycleGAN", {}),
        "paper": "Zhu et al., CycleGAN, ICCV 2017, arXiv:1703.10593",
        "year": 2017,
        "needs": PAIR,
        "spatial_dims": (2,),
        # Two translators (methods.md §2.8).
        "parameters": 22_731_266,
        "total_parameters": 28_256_644,
        "macs": 12_182_355_968,
    },
    "synseg": {
        "summary": "Labels of one modality teach another through CycleGAN's translations.",
        "networks": {
            "generator": ("SynSegNetwork", {"filters": 64}),
            "discriminator_a": ("PatchDiscriminator", {}),
            "discriminator_b": ("PatchDiscriminator", {}),
        },
        "game": ("SynSeg", {}),
        "paper": "Huo et al., SynSeg-Net, TMI 2019, arXiv:1810.06498",
        "year": 2019,
        "needs": ONE_LABELLED,
        "spatial_dims": (2,),
        # Translators and segmentor, two classes out; with both discriminators 39,625,414 (§6).
        "parameters": 34_100_036,
        "total_parameters": 39_625_414,
        "macs": 12_233_736_192,
    },
    "sifa": {
        "summary": "Labels of one modality teach another; images and features are aligned.",
        "networks": {
            "segmentor": ("SIFANetwork", {"filters": 16}),
            "discriminator_a": ("SIFADiscriminator", {}),
            "discriminator_b": ("SIFADiscriminator", {}),
            "discriminator_mask": ("SIFADiscriminator", {}),
            "discriminator_low": ("SIFADiscriminator", {}),
        },
        "game": ("SIFA", {}),
        "paper": "Chen et al., SIFA, TMI 2020, arXiv:2002.02255",
        "year": 2020,
        "needs": ONE_LABELLED,
        "spatial_dims": (2,),
        # Translator, encoder, decoder and segmentors, two classes out. With all discriminators and
        # five classes 43,347,441 (§6).
        "parameters": 32_273_905,
        "total_parameters": 43_338_225,
        "macs": 7_279_738_880,
    },
    "stargan": {
        "summary": "Any-to-any translation by one generator; makes no label maps.",
        "networks": {
            "generator": ("StarGANGenerator", {"filters": 64}),
            "discriminator": ("StarGANDiscriminator", {}),
        },
        "game": ("StarGAN", {}),
        "paper": "Choi et al., StarGAN, CVPR 2018, arXiv:1711.09020",
        "year": 2018,
        "needs": TRANSLATED,
        "spatial_dims": (2, 3),
        # Generator for three modalities (methods.md §2.1).
        "parameters": 8_411_712,
        "total_parameters": 53_155_328,
        "macs": 9_652_142_080,
    },
    "stargan+segan": {
        "summary": "StarGAN and SegAN side by side; the segmentor learns from translations too.",
        "networks": {
            "segmentor": ("SegANSegmentor", {"filters": 64}),
            "generator": ("StarGANGenerator", {}),
            "discriminator": ("StarGANDiscriminator", {}),
            "critic": ("SegANCritic", {"constraint": "spectral"}),
        },
        "game": ("StarGANSegAN", {}),
        "paper": "arXiv:1711.09020 and arXiv:1706.01805, played together",
        "year": 2018,
        "needs": GAMES,
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
        "total_parameters": 58_487_553,
        "macs": 1_935_671_296,
    },
    "uagan": {
        "summary": "Two streams with attention between them, one segments and one translates.",
        "networks": {
            "generator": ("UAGANGenerator", {}),
            "discriminator": ("StarGANDiscriminator", {"first_slope": 0.001}),
        },
        "game": ("UAGAN", {}),
        "paper": "Yuan et al., UAGAN, MICCAI 2019, arXiv:1907.03548",
        "year": 2019,
        "needs": GAMES_TOLD,
        "spatial_dims": (2,),
        # Generator for three modalities, one channel in, two classes out (methods.md §2.5).
        "parameters": 60_442_755,
        "total_parameters": 105_186_371,
        "macs": 20_215_496_704,
    },
    "unified_gan": {
        "summary": "Shared encoder, one decoder segments and one translates; difference map.",
        "networks": {
            "generator": ("UnifiedGenerator", {}),
            "discriminator": ("StarGANDiscriminator", {}),
        },
        "game": ("UnifiedGAN", {}),
        "paper": "Yuan et al., Unified GAN, Medical Image Analysis 2020, "
        "doi:10.1016/j.media.2020.101731",
        "year": 2020,
        "needs": GAMES,
        "spatial_dims": (2, 3),
        # Generator for three modalities, one channel in, two classes out (methods.md §2.6).
        "parameters": 10_815_520,
        "total_parameters": 55_559_136,
        "macs": 4_969_202_048,
    },
    "unigan": {
        "summary": "Unified GAN with SegAN's critic on its segmentation: this package's own.",
        "networks": {
            # Only the translation is told what to make, so that every sample trains the
            # segmentation that prediction asks for.
            "generator": ("UnifiedGenerator", {"conditioning": "decoder", "se_levels": 0}),
            "discriminator": ("StarGANDiscriminator", {"max_dim": 512}),
            "critic": ("SegANCritic", {"constraint": "spectral"}),
        },
        # One pass of the critic for all classes.
        "game": ("UniGAN", {"critic_mode": "joint"}),
        "paper": "this package, after doi:10.1016/j.media.2020.101731 and arXiv:1706.01805",
        "year": 2026,
        "needs": GAMES,
        "spatial_dims": (2, 3),
        "parameters": 10_820_032,
        "total_parameters": 22_632_768,
        "macs": 3_008_888_832,
    },
    "synthesis": {
        "summary": "Label maps from noise, images from label maps: pairs for other systems.",
        "networks": {
            "segmentor": ("UNet", {}),
            "renderer": ("ImageRenderer", {}),
            "mask_generator": ("MaskGenerator", {}),
            "discriminator": ("StarGANDiscriminator", {"max_dim": 256}),
            "mask_critic": ("MaskCritic", {}),
        },
        "game": ("SynthesisGAN", {}),
        "paper": "Park et al., SPADE, CVPR 2019, arXiv:1903.07291; Gulrajani et al., NeurIPS 2017, "
        "arXiv:1704.00028",
        "year": 2019,
        "needs": LABELS,
        "spatial_dims": (2, 3),
        # The U-Net that judges what is made: as `joint`.
        "parameters": 7_759_554,
        "total_parameters": 15_879_271,
        "macs": 3_008_888_832,
    },
}
