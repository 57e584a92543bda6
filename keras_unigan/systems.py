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
    "individual": {
        "summary": "A U-Net of its own for each modality: the specialists.",
        "networks": {"segmentor": ("IndividualUNets", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Ronneberger et al., U-Net, MICCAI 2015, arXiv:1505.04597",
        "year": 2015,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 23_278_662,
    },
    "joint_cond": {
        "summary": "One U-Net that is told the modality by planes beside the image.",
        "networks": {"segmentor": ("ConditionalUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Ronneberger et al., U-Net, MICCAI 2015, arXiv:1505.04597",
        "year": 2015,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 7_760_418,
    },
    "ds_norm": {
        "summary": "Shared kernels, norms for each modality, distillation between them.",
        "networks": {"segmentor": ("DomainNormUNet", {})},
        "game": ("DistilledModel", {}),
        "paper": "Dou et al., Unpaired multi-modal segmentation via knowledge distillation, "
        "TMI 2020, arXiv:2001.03111; Karani et al., MICCAI 2018, arXiv:1805.10170",
        "year": 2020,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 7_777_218,
    },
    "early_fusion": {
        "summary": "Input channels for each modality, absent ones zero.",
        "networks": {"segmentor": ("EarlyFusionUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Ronneberger et al., U-Net, MICCAI 2015, arXiv:1505.04597",
        "year": 2015,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 7_760_130,
    },
    "late_fusion": {
        "summary": "A U-Net for each modality; a last block sees the finest maps of all.",
        "networks": {"segmentor": ("LateFusionUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Nie et al., Fully convolutional networks for multi-modality isointense infant "
        "brain image segmentation, ISBI 2016",
        "year": 2016,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 23_315_458,
    },
    "cross_modality_conv": {
        "summary": "An encoder for each modality, joined by a convolution across modalities.",
        "networks": {"segmentor": ("CrossModalityUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Tseng et al., Joint sequence learning and cross-modality convolution, CVPR 2017, "
        "arXiv:1704.07754",
        "year": 2017,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 10_364_514,
    },
    "shared_latent": {
        "summary": "Own encoders and image decoders around one centre; images are rebuilt too.",
        "networks": {"segmentor": ("SharedLatentUNet", {})},
        "game": ("MultiTaskModel", {}),
        "paper": "Kuga et al., Multi-task learning using multi-modal encoder-decoder networks with "
        "shared skip connections, ICCV Workshops 2017",
        "year": 2017,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 19_246_533,
    },
    "dual_stream": {
        "summary": "Own encoders and decoders, shared deepest level and centre (X-shape).",
        "networks": {"segmentor": ("DualStreamUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Valindria et al., Multi-modal learning from unpaired images, WACV 2018",
        "year": 2018,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 14_428_230,
    },
    "y_shape": {
        "summary": "Own encoders, shared centre and decoder.",
        "networks": {"segmentor": ("YShapeUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Valindria et al., Multi-modal learning from unpaired images, WACV 2018",
        "year": 2018,
        "needs": "labels; asks for the modality (without it, the parts of all are averaged)",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 10_102_914,
    },
    "padnet": {
        "summary": "Label map, reconstruction and boundary, distilled into one label map.",
        "networks": {"segmentor": ("PADNet", {})},
        "game": ("MultiTaskModel", {}),
        "paper": "Xu et al., PAD-Net, CVPR 2018, arXiv:1805.04409",
        "year": 2018,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 7_861_414,
    },
    "se_unet": {
        "summary": "U-Net with squeeze-and-excitation after every block.",
        "networks": {"segmentor": ("ExcitedUNet", {})},
        "game": ("SupervisedModel", {}),
        "paper": "Hu et al., Squeeze-and-excitation networks, CVPR 2018, arXiv:1709.01507",
        "year": 2018,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        # Width 32, 4 levels, one channel in, two classes out, three modalities (methods.md §6).
        "parameters": 7_814_082,
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
    "segan_isic": {
        "summary": "SegAN, skin-lesion form: global convolutions, flat multi-scale loss.",
        "networks": {
            "segmentor": ("SegANISICSegmentor", {"filters": 64}),
            "critic": ("SegANISICCritic", {"filters": 64}),
        },
        "game": (
            "SegAN",
            {"mask_mode": "multiply", "weighting": "flat", "constraint": "clip", "ce_weight": 1.0},
        ),
        "paper": "Xue et al., Adversarial learning with multi-scale loss for skin lesion "
        "segmentation, ISBI 2018",
        "year": 2018,
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2,),
        # Segmentor, one channel in and one out (methods.md §2.4).
        "parameters": 156_228_992,
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
        "needs": "labels; modality not needed at prediction",
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
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
        "needs": "no labels; two modalities (game.pair); translation only",
        "spatial_dims": (2,),
        # Two translators (methods.md §2.8).
        "parameters": 22_731_266,
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
        "needs": "no labels; two or more modalities",
        "spatial_dims": (2, 3),
        # Generator for three modalities (methods.md §2.1).
        "parameters": 8_411_712,
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
        "needs": "labels; two or more modalities; modality not needed at prediction",
        "spatial_dims": (2, 3),
        "parameters": 4_674_369,
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
        "needs": "labels; two or more modalities; told the modality at prediction, or none",
        "spatial_dims": (2,),
        # Generator for three modalities, one channel in, two classes out (methods.md §2.5).
        "parameters": 60_442_755,
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
        "needs": "labels; two or more modalities; modality not needed at prediction",
        "spatial_dims": (2, 3),
        # Generator for three modalities, one channel in, two classes out (methods.md §2.6).
        "parameters": 10_815_520,
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
        "needs": "labels; two or more modalities; modality not needed at prediction",
        "spatial_dims": (2, 3),
        "parameters": 10_820_032,
    },
}
