from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.draws import Draws, step_generator
from data.pose_augmentation import PoseAugmentationConfig
from data.prior import load_pose_prior
from tools.experiment import PosesConfig, pose_source


def poses_of(config: PosesConfig, *, validation: bool) -> torch.Tensor:
    source = pose_source(config, validation=validation)
    return source.poses(torch.arange(20), Draws(20, step_generator(0, 0)))


def test_training_poses_are_augmented_and_validation_poses_are_not(tmp_path: Path) -> None:
    poses = load_pose_prior().sample(40, torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "poses.npz", poses=poses, subject=np.repeat([1, 2], 20))
    plain = PosesConfig(source="file", file=str(tmp_path / "poses.npz"), validation_subjects=(2,))
    config = replace(plain, augmentation=PoseAugmentationConfig(turn=1.0))
    assert torch.equal(poses_of(config, validation=True), poses_of(plain, validation=True))
    changed = (poses_of(config, validation=False) - poses_of(plain, validation=False)).abs().amax((1, 2)) > 1e-4
    assert changed.all()
