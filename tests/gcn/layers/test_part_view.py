from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gcn.layers.part_view import PartView
from gcn.parts import HEAD, LIMBS, find_limb
from mesh.joints import COCO19, OPENPOSE25, JointSet

CHAINS = {
    "arm": ["shoulder elbow", "elbow wrist"],
    "leg": ["hip knee", "knee ankle"],
    "head": ["neck nose", "nose left_eye", "nose right_eye", "left_eye left_ear", "right_eye right_ear"],
}
OTHER = {"left": "right", "right": "left"}


def view_of(joints: JointSet = COCO19, channels: int = 2) -> PartView:
    limbs = [find_limb(joints, *limb) for limb in LIMBS.items()]
    return PartView(joints, limbs, find_limb(joints, *HEAD), channels)


@pytest.fixture
def given(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    down = nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    return torch.rand(4, 19, 2, generator=generator), torch.randn(4, 19, 3, generator=generator), down


def by_hand(given: tuple[Tensor, Tensor, Tensor], kind: str, side: str) -> Tensor:
    """What is to be seen of one limb, or of the head, (B, size)."""
    other, local, down = given
    mirror = torch.tensor([-1.0, 1.0, 1.0]) if side == "right" else torch.ones(3)
    prefix = "" if kind == "head" else f"{side}_"
    links = [[COCO19.index(prefix + name) for name in link.split()] for link in CHAINS[kind]]
    own = [links[0][0], *(end for _, end in links)]
    bones = [nn.functional.normalize((local[:, b] - local[:, a]) * mirror, dim=1) for a, b in links]
    bends = [torch.linalg.cross(first, second) for first, second in pairwise(bones)]
    corners = [COCO19.index(f"{s}_{part}") for part in ("shoulder", "hip") for s in (side, OTHER[side])]
    reaches = [(local[:, joint] - local[:, own[0]]) * mirror for joint in own[1:]]
    vectors = [*reaches, *bones, *bends, *(local[:, joint] * mirror for joint in corners), down * mirror]
    return torch.cat([*vectors, *(other[:, joint] for joint in own)], dim=1)


@pytest.mark.parametrize(
    ("row", "kind", "side"),
    [
        (2, "arm", "left"),
        (3, "arm", "right"),
        (4, "leg", "left"),
        (5, "leg", "right"),
        (6, "head", "left"),
        (7, "head", "left"),
    ],
)
def test_a_limb_is_seen_from_where_it_is_attached(given, row: int, kind: str, side: str) -> None:
    view = view_of()
    rows = view(*given).unflatten(1, (2, 4)).flatten(0, 1)
    wanted = by_hand(given, kind, side)
    assert view.sizes[row // 2] == wanted.shape[1]
    torch.testing.assert_close(rows[row, :, : wanted.shape[1]], wanted)
    assert not rows[row, :, wanted.shape[1] :].any()


def test_the_whole_is_all_that_is_known(given) -> None:
    other, local, down = given
    view = view_of()
    wanted = torch.cat((other.flatten(1), local.flatten(1), down), dim=1)
    assert view.sizes[0] == wanted.shape[1] == max(view.sizes)
    torch.testing.assert_close(view(*given)[0], wanted.repeat(2, 1))


def test_joints_may_have_no_other_channels(given) -> None:
    other, local, down = given
    assert view_of(channels=0).sizes == [60, 30, 30, 57]
    with_channels = view_of()(*given).unflatten(1, (2, 4))[1, 0, :, :30]
    torch.testing.assert_close(view_of(channels=0)(other[..., :0], local, down)[1, :4, :30], with_channels)


def test_of_nobody_nothing_is_seen(given) -> None:
    assert view_of()(*(x[:0] for x in given)).shape == (4, 0, 98)


def test_limbs_may_branch() -> None:
    torso, leg = 3 * (25 + 1), 3 * (5 + 5 + 4 + 5)
    assert view_of(OPENPOSE25, 1).sizes[:3:2] == [25 + torso, leg + 6]


def test_joints_in_one_place_have_finite_gradients(given) -> None:
    local = torch.zeros(4, 19, 3, requires_grad=True)
    view_of()(given[0], local, given[2]).sum().backward()
    assert local.grad is not None and local.grad.isfinite().all()
