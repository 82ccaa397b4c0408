from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gcn.features import pose_features
from gcn.lifters.depth_only import DepthOnly, fit_scale
from gcn.posenet import PoseNet
from mesh.joints import COCO19

ROOT = COCO19.root_idx


class Fixed(nn.Module):
    """A lifter that says the same whatever it sees."""

    def __init__(self, joints: Tensor) -> None:
        super().__init__()
        self.joints = nn.Parameter(joints - joints[:, ROOT, None])

    def forward(self, features: Tensor) -> Tensor:
        return self.joints


def made(generator: torch.Generator, people: int = 4) -> tuple[Tensor, Tensor]:
    """True joints (B, 19, 3) metres, and their exact orthographic picture (B, 19, 2) px."""
    joints = torch.randn(people, 19, 3, generator=generator)
    joints = joints - joints[:, ROOT, None]
    return joints, 50 * joints[..., :2] + 300


def test_the_picture_of_an_orthographic_camera_gives_x_and_y_exactly(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    noise = torch.randn(joints.shape, generator=generator) * torch.tensor([0.0, 0.0, 1.0])
    said = DepthOnly(Fixed(joints + noise), COCO19)(pose_features(picture, torch.ones(4, 19)))
    torch.testing.assert_close(said[..., :2], joints[..., :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(said[..., 2], (joints + noise - noise[:, ROOT, None])[..., 2])


def test_known_joints_have_the_shape_of_the_picture_and_unknown_ones_the_lifters(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    confidence = torch.ones(4, 19)
    confidence[:, [3, 8]] = 0
    features = pose_features(picture + 20 * torch.randn(picture.shape, generator=generator), confidence)
    said = DepthOnly(Fixed(joints), COCO19)(features)
    known = confidence[0] > 0
    offsets = features[:, known, :2] - features[:, ROOT, None, :2]
    ratio = (said[:, known, :2] * offsets).sum((1, 2), keepdim=True) / offsets.square().sum((1, 2), keepdim=True)
    torch.testing.assert_close(said[:, known, :2], ratio * offsets, atol=1e-5, rtol=0)
    assert (said[:, known, :2] - joints[:, known, :2]).abs().max() > 0.01
    torch.testing.assert_close(said[:, ~known], joints[:, ~known])
    assert (said[:, ROOT] == 0).all()


def test_an_unseen_root_is_where_the_others_say(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    confidence = torch.ones(4, 19)
    confidence[:, ROOT] = 0
    said = DepthOnly(Fixed(joints), COCO19)(pose_features(picture, confidence))
    torch.testing.assert_close(said, joints, atol=1e-5, rtol=0)
    assert (said[:, ROOT] == 0).all()


def test_without_confidence_joints_at_zero_count_as_unknown(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    confidence = (torch.rand(4, 19, generator=generator) > 0.3).float()
    features = pose_features(picture + 20 * torch.randn(picture.shape, generator=generator), confidence)
    depth_only = DepthOnly(Fixed(joints), COCO19)
    torch.testing.assert_close(depth_only(features[..., :2]), depth_only(features))


def test_the_scale_is_the_one_of_least_squares(generator: torch.Generator) -> None:
    points, target = torch.randn(2, 3, 19, 2, generator=generator, dtype=torch.float64)
    known = torch.rand(3, 19, generator=generator) > 0.3
    scale, shift, _ = fit_scale(points, target, known)
    for i in range(3):
        chosen, aim = points[i, known[i]], target[i, known[i]]
        zero, one = torch.zeros(len(chosen)), torch.ones(len(chosen))
        columns = [chosen.T.flatten(), torch.cat((one, zero)), torch.cat((zero, one))]
        solution = torch.linalg.lstsq(torch.stack(columns, dim=1).double(), aim.T.flatten()[:, None]).solution[:, 0]
        torch.testing.assert_close(torch.cat((scale[i, 0], shift[i, 0])), solution, atol=1e-6, rtol=1e-6)


def test_poses_without_extent_or_known_joints_keep_what_the_lifter_says(generator: torch.Generator) -> None:
    joints, picture = made(generator, 3)
    confidence = torch.ones(3, 19)
    confidence[0] = 0
    confidence[1, 1:] = 0
    picture[2] = 300
    lifter = Fixed(joints)
    said = DepthOnly(lifter, COCO19)(pose_features(picture, confidence))
    torch.testing.assert_close(said, joints, rtol=0, atol=0)
    said.square().sum().backward()
    assert lifter.joints.grad is not None and lifter.joints.grad.isfinite().all()


def test_the_lifter_learns_from_the_scale_even_when_it_has_it_the_wrong_way(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    lifter = Fixed(-joints)
    said = DepthOnly(lifter, COCO19)(pose_features(picture, torch.ones(4, 19)))
    (said[..., :2] - joints[..., :2]).abs().sum().backward()
    assert lifter.joints.grad is not None
    assert ((lifter.joints.grad * joints).sum((1, 2)) < 0).all()  # descent leads towards the truth


def test_another_order_of_the_joints_gives_the_same(generator: torch.Generator) -> None:
    joints, picture = made(generator)
    features = pose_features(picture + 20 * torch.randn(picture.shape, generator=generator), torch.ones(4, 19))
    features[:, 3] = 0
    order = torch.randperm(19, generator=generator)
    place = order.argsort().tolist()
    edges = tuple((place[a], place[b]) for a, b in COCO19.edges)
    shuffled = replace(COCO19, names=tuple(COCO19.names[i] for i in order), edges=edges)
    lifter = Fixed(joints)
    expected = DepthOnly(lifter, COCO19)(features)[:, order]
    lifter.joints.data = lifter.joints.data[:, order]
    torch.testing.assert_close(DepthOnly(lifter, shuffled)(features[:, order]), expected, atol=1e-5, rtol=1e-4)


def test_it_wraps_a_lifter_whose_every_parameter_learns(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    _, picture = made(generator)
    model = DepthOnly(PoseNet(COCO19, 3, width=16, blocks=1), COCO19)
    model(pose_features(picture, torch.ones(4, 19))).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
