"""The yardsticks compute the same as the toolkit: a ratio of two different things would say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from data.noise_coco import similarity_radius
from mesh.alignment import align
from mesh.body import load_body
from mesh.files import upright
from mesh.joints import COCO17, HUMAN36M17
from mesh.metrics import aligned_error_mm, point_error_mm
from mesh.skinning import BodyModel
from tools.benchmark_chebconv import ChebConvMeshNet, edge_index
from tools.benchmark_data import _bodies
from tools.original_loops import OneBody, OneByOne, align_each, errors_of_each, noisy_joints, write_obj_by_line

BODY = load_body()
RNG = np.random.default_rng(0)


def test_aligning_one_by_one_gives_what_the_batch_gives_reflections_included() -> None:
    source = RNG.normal(size=(6, 17, 3))
    target = source + RNG.normal(0, 0.3, source.shape)
    target[3:] *= (-1, 1, 1)
    expected = align(torch.from_numpy(source), torch.from_numpy(target)).numpy()
    np.testing.assert_allclose(align_each(source, target), expected, atol=1e-9)


def test_errors_one_by_one_are_those_of_the_batch() -> None:
    true = BODY.template[None] + RNG.normal(0, 0.02, (3, BODY.num_vertices, 3))
    predicted = true + RNG.normal(0, 0.02, true.shape)
    regressor = BODY.regressor(HUMAN36M17).astype(np.float64)
    found = errors_of_each(predicted, true, regressor)
    a, b = torch.from_numpy(predicted), torch.from_numpy(true)
    joints, true_joints = torch.from_numpy(regressor) @ a, torch.from_numpy(regressor) @ b
    joints, true_joints, root = joints - joints[:, :1], true_joints - true_joints[:, :1], (joints - true_joints)[:, 0]
    expected = [
        point_error_mm(joints, true_joints),
        aligned_error_mm(joints, true_joints),
        point_error_mm(a, b, -root),
    ]
    np.testing.assert_allclose(found, torch.stack(expected, 1).numpy(), rtol=1e-6)


def test_one_body_at_a_time_stands_as_the_batch_does() -> None:
    rotations, shape = _bodies(2)
    expected = BodyModel(BODY)(rotations, shape)[0]
    one = OneBody(BODY)
    for k in range(2):
        torch.testing.assert_close(
            one.vertices(rotations[k : k + 1], shape[k : k + 1])[0], expected[k], atol=2e-5, rtol=0
        )


def test_the_line_by_line_writer_writes_a_mesh(tmp_path: Path) -> None:
    write_obj_by_line(tmp_path / "a.obj", upright(BODY.template), BODY.faces)
    mesh = trimesh.load(tmp_path / "a.obj", process=False, force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    np.testing.assert_allclose(mesh.vertices, upright(BODY.template), atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, BODY.faces)


def test_joints_err_by_at_most_the_radius_of_a_miss_around_the_joint_or_its_partner() -> None:
    joints = (BODY.regressor(COCO17) @ BODY.template)[:, :2] * 400 + 500
    noisy = noisy_joints(joints, np.random.default_rng(1))
    area = torch.tensor([float(np.prod(np.ptp(joints, axis=0) * 1.25))])
    radius = similarity_radius(0.1, area)[0].numpy()
    off = [np.linalg.norm(noisy - centre, axis=1) for centre in (joints, joints[list(COCO17.flip_permutation)])]
    assert (np.minimum(*off) <= 2 * radius).all() and (off[0] > 0).all()


def test_samples_one_by_one_are_collated() -> None:
    parts = OneByOne(BODY).batch(*_bodies(2), 0)
    assert [part.shape for part in parts] == [(2, BODY.num_vertices, 3), (2, 17, 3), (2, 17, 3), (2, 17, 2)]
    assert all(np.isfinite(part).all() for part in parts)


def test_the_librarys_network_goes_from_joints_to_all_vertices_and_learns() -> None:
    from gcn.coarsening import coarsen
    from gcn.pose2mesh import JOINTS

    ring = np.array([(k, (k + 1) % 16) for k in range(16)])
    hierarchy = coarsen(ring, 16, 2)
    plan = ((2, (4, 8, 8)), (1, (8, 6, 6)), (0, (6, 4, 3)))
    net = ChebConvMeshNet(JOINTS, 5, hierarchy, plan=plan)
    net(torch.randn(2, 19, 2), torch.randn(2, 19, 3)).square().sum().backward()
    assert net(torch.randn(2, 19, 2), torch.randn(2, 19, 3)).shape == (2, 16, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("self_loops", [False, True])
def test_edges_are_listed_both_ways_without_loops(self_loops: bool) -> None:
    from scipy import sparse

    matrix = sparse.csr_matrix(np.array([[float(self_loops), 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert sorted(map(tuple, edge_index(matrix).T.tolist())) == [(0, 1), (1, 0)]
