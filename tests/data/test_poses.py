"""Pose files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.draws import Draws
from data.poses import read_poses
from mesh.errors import InputError


@pytest.fixture
def pose_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(40, 24, 4)).astype(np.float16)
    np.savez(tmp_path / "p.npz", poses=poses, subject=np.repeat([1, 2, 3, 4], 10), level=np.tile([0, 1, 2, 3, 4], 8))
    return tmp_path / "p.npz"


def test_pose_files_are_split_by_subject_and_level(pose_file: Path) -> None:
    assert len(read_poses(pose_file)) == 40
    assert len(read_poses(pose_file, subjects=(2,))) == 10
    assert len(read_poses(pose_file, except_subjects=(2, 3), max_level=1)) == 8
    norms = read_poses(pose_file).quaternions.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(40, 24))


def test_children_of_people_who_are_left_out_are_refused(tmp_path: Path) -> None:
    poses = np.random.default_rng(0).normal(size=(5, 24, 4)).astype(np.float32)
    parents = np.array([[-1, -1], [-1, -1], [-1, -1], [0, 1], [3, 1]])
    np.savez(
        tmp_path / "e.npz",
        poses=poses,
        subject=np.array([1, 2, 3, -1, -1]),
        parents=parents,
        generation=parents[:, 0] + 1,
    )
    assert len(read_poses(tmp_path / "e.npz", except_subjects=(3,))) == 4
    assert len(read_poses(tmp_path / "e.npz", subjects=(2,))) == 1
    with pytest.raises(InputError, match=r"evolved children of the people to be left out; evolve it anew"):
        read_poses(tmp_path / "e.npz", except_subjects=(2,))


def test_axis_angle_pose_files_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", poses=np.full((2, 24, 3), [np.pi, 0, 0], np.float32))
    expected = torch.tensor([0.0, 1, 0, 0]).expand(2, 24, 4)
    torch.testing.assert_close(read_poses(tmp_path / "a.npz").quaternions, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"poses": np.zeros((3, 23, 4))}, {}, r"shape \(3, 23, 4\); expected \(N, 24, 4\)"),
        ({"joints": np.zeros(3)}, {}, "holds no 'poses'"),
        ({"poses": np.full((3, 24, 4), np.nan)}, {}, "NaN"),
        ({"poses": np.full((3, 24, 4), "1")}, {}, "'poses' must be numbers, got <U1"),
        ({"poses": np.ones((3, 24, 4), complex)}, {}, "'poses' must be numbers, got complex128"),
        ({"poses": np.zeros((3, 24, 4))}, {}, "no rotation: quaternions of length 0"),
        ({"poses": np.full((3, 24, 4), 1e30)}, {}, "no rotation"),
        ({"poses": np.ones((3, 24, 4))}, {"subjects": (1,)}, "no 'subject' column"),
        ({"poses": np.ones((3, 24, 4)), "subject": np.ones(4, int)}, {"subjects": (1,)}, "must be 3 whole numbers"),
        ({"poses": np.ones((3, 24, 4)), "subject": np.ones(3, int)}, {"subjects": (7,)}, "no pose is left of 3"),
    ],
)
def test_bad_pose_files_are_refused(tmp_path: Path, arrays, options, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_poses(tmp_path / "bad.npz", **options)


def test_a_truncated_pose_file_is_refused(pose_file: Path) -> None:
    pose_file.write_bytes(pose_file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a whole"):
        read_poses(pose_file)


def test_the_poses_at_an_index_are_given_in_its_order_and_nothing_is_drawn(pose_file: Path, generator) -> None:
    source, before = read_poses(pose_file), generator.get_state()
    index = torch.tensor([7, 0, 39, 7])
    poses = source.poses(index, Draws(4, generator))
    assert torch.equal(poses, torch.stack([source.quaternions[i] for i in (7, 0, 39, 7)]))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("parents", [np.full((3, 2), 3), np.zeros((2, 2), int), np.zeros((3, 2))])
def test_parents_that_are_no_rows_of_the_file_are_refused(tmp_path: Path, parents: np.ndarray) -> None:
    np.savez(
        tmp_path / "e.npz",
        poses=np.ones((3, 24, 4)),
        subject=np.array([1, 2, -1]),
        parents=parents,
        generation=[0, 0, 1],
    )
    with pytest.raises(InputError, match="'parents' must be rows of the file for each of its 3 poses"):
        read_poses(tmp_path / "e.npz", except_subjects=(2,))


def test_the_parents_of_a_skeleton_are_nobodys_descent(tmp_path: Path) -> None:
    skeleton = np.arange(-1, 23)
    np.savez(tmp_path / "p.npz", poses=np.ones((3, 24, 4)), subject=np.array([1, 2, 2]), parents=skeleton)
    assert len(read_poses(tmp_path / "p.npz", except_subjects=(1,))) == 2
