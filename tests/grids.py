"""Grids and ramps for checks in world coordinates."""

import itertools

import nibabel as nib
import numpy as np

ORIENTATIONS = [
    np.stack([order, flips], axis=1)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
"""All 48 ways to store the axes of a volume, in nibabel's form."""


def oblique_affine(spacing=(0.8, 1.5, 3.0), degrees=17):
    """RAS+ affine with unequal spacing, turned about a skew axis."""
    affine = np.eye(4)
    turn = nib.quaternions.angle_axis2mat(np.deg2rad(degrees), [1.0, -2.0, 0.5])
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def world_ramp(shape, affine):
    """Linear function of the world position of each voxel centre."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return world @ np.array([1.0, 10.0, 100.0]) + 5.0


def oriented(shape, affine, orientation):
    """The same grid, its axes stored in another order and direction: (shape, affine)."""
    turned = nib.apply_orientation(np.zeros(shape), orientation)
    return turned.shape, affine @ nib.orientations.inv_ornt_aff(orientation, shape)
