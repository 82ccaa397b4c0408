from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gcn.mirroring import MirrorAveraged
from gcn.pose2mesh import (
    MESH_WEIGHTS,
    ModelConfig,
    Pose2Mesh,
    build_graph,
    build_labeling,
    build_uncertainty,
    save_weights,
)
from gcn.posenet import PoseNetConfig
from gcn.recovery import MIN_JOINTS, UNSURE_EXPECTED_M, UNSURE_JOINT_M, MeshRecovery, NoInitialisation
from gcn.uncertainty import ErrorNet, weights_digest
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, MIN_CONFIDENCE, MPII16, JointSet, Keypoints

BODY = load_body()
FACING = (BODY.template * (1, -1, -1)).astype(np.float32)  # camera frame, looking at the camera


@pytest.fixture(scope="module")
def recovery() -> MeshRecovery:
    """An untrained network that starts from a standing body instead of from nothing."""
    torch.manual_seed(0)
    config = ModelConfig(posenet=PoseNetConfig(width=32, blocks=1))
    model = Pose2Mesh(config, build_graph(config.meshnet, BODY, FACING[None]))
    standing = BODY.regressor(COCO19) @ FACING
    with torch.no_grad():
        model.posenet.head.weight.mul_(0.1)
        model.posenet.head.bias.copy_(torch.from_numpy(standing.astype(np.float32)).flatten())
    return MeshRecovery(model, (build_labeling(config), config), BODY)


def people(count: int, joints: JointSet = COCO17, seed: int = 0) -> Keypoints:
    rng = np.random.default_rng(seed)
    standing = Keypoints(
        positions_px=(500 + 200 * (BODY.regressor(COCO17) @ FACING)[None, :, :2]).astype(np.float32),
        confidence=np.ones((1, 17), np.float32),
        joint_set=COCO17,
    ).to(joints)
    positions = standing.positions_px + 40 * rng.normal(size=(count, len(joints), 2)).astype(np.float32)
    return Keypoints(positions_px=positions, confidence=np.ones((count, len(joints)), np.float32), joint_set=joints)


def test_results_are_rooted_at_the_human36m_pelvis_and_consistent(recovery: MeshRecovery) -> None:
    found = recovery.recover(people(3))
    assert found.vertices.shape == (3, 6890, 3) and found.joints.shape == (3, 17, 3)
    expected = recovery.body.regressor(HUMAN36M17) @ found.vertices
    np.testing.assert_allclose(found.joints, expected, atol=1e-5)
    np.testing.assert_allclose(found.joints[:, HUMAN36M17.root_idx], 0, atol=1e-6)


def test_batches_of_any_size_give_the_same_people(recovery: MeshRecovery) -> None:
    whole, pieces = (recovery.recover(people(7), batch_size=size) for size in (7, 2))
    np.testing.assert_allclose(whole.vertices, pieces.vertices, atol=1e-5)
    assert len(recovery.recover(people(0))) == 0


def around_the_camera(angle_rad: float) -> Keypoints:
    """A person 4 m away on the level of the camera, at an angle to its axis, in a picture of 800 x 600 px."""
    joints = (BODY.regressor(COCO17) @ FACING).astype(np.float64)
    level = (joints[:, 1] / (joints[:, 2] + 4)).mean() / (1 / (joints[:, 2] + 4)).mean()
    x, y, z = (joints - (0, level, -4)).T
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    x, z = cos * x + sin * z, cos * z - sin * x
    positions = 1000 * np.stack((x / z, y / z), axis=-1) + (400, 300)
    return Keypoints(
        positions_px=positions[None].astype(np.float32), confidence=np.ones((1, 17), np.float32), joint_set=COCO17,
        image_size=(800, 600),
    )  # fmt: skip


def test_whoever_stands_beside_the_axis_is_seen_from_there(recovery: MeshRecovery) -> None:
    """The focal length of 1000 px is the picture's diagonal, which is assumed."""
    ahead, beside = around_the_camera(0.0), around_the_camera(0.35)
    turn = np.array([[np.cos(0.35), 0, np.sin(0.35)], [0, 1, 0], [-np.sin(0.35), 0, np.cos(0.35)]])
    straight, found = (recovery.recover(k).joints[0] for k in (ahead, beside))
    assert np.abs(found - straight @ turn.T).max() < 0.02 < np.abs(found - straight).max()
    told = recovery.recover(beside, focal_px=1000.0).joints[0]
    np.testing.assert_allclose(told, found, atol=1e-6)
    longer = recovery.recover(beside, focal_px=4000.0).joints[0]
    assert np.abs(longer - found).max() > 0.02


def test_a_person_stands_before_the_camera_where_the_picture_shows_them(recovery: MeshRecovery) -> None:
    keypoints = around_the_camera(0.35)
    found = recovery.recover(keypoints)
    np.testing.assert_allclose(found.intrinsics, [[1000, 1000, 400, 300]])
    assert found.has_place.all() and 0.2 < found.place[0, 0] / found.place[0, 2] < 0.5
    joints = (BODY.regressor(COCO17) @ found.vertices[0]) + found.place[0]
    placed = joints[:, :2] / joints[:, 2:] * 1000 + (400, 300)
    error = np.linalg.norm(placed - keypoints.positions_px[0], axis=1).mean()
    weak = (BODY.regressor(COCO17) @ found.vertices[0])[:, :2] * found.camera[0, 0]
    assert found.misfit[0] == pytest.approx(error / np.sqrt(np.prod(np.ptp(weak, axis=0))), rel=1e-3)
    vertices = found.vertices[0] + found.place[0]
    np.testing.assert_allclose(
        found.vertices_px(0)[:, :2], vertices[:, :2] / vertices[:, 2:] * 1000 + (400, 300), atol=0.01
    )
    blind = recovery.recover(replace(keypoints, image_size=None))
    assert not blind.has_place.any() and np.isnan(blind.intrinsics).all()


def test_nobody_is_placed_partly_behind_the_camera(recovery: MeshRecovery, monkeypatch) -> None:
    """A person that large in the picture would stand with the nose behind the lens."""
    near = around_the_camera(0.0)
    middle = near.positions_px.mean(1, keepdims=True)
    nearer = [replace(near, positions_px=middle + s * (near.positions_px - middle)) for s in (1, 60)]
    placed, not_placed = (recovery.recover(k) for k in nearer)
    assert placed.has_place.all() and (placed.vertices[0, :, 2] + placed.place[0, 2]).min() > 0.1
    assert not_placed.valid.all() and not not_placed.has_place.any() and np.isfinite(not_placed.misfit).all()
    assert not_placed.has_camera.all()
    # Every vertex counts, also where no joint is: the nearest one decides.
    nearest = float((placed.vertices[0, :, 2] + placed.place[0, 2]).min())
    for least, has_place in ((nearest - 1e-3, True), (nearest + 1e-3, False)):
        monkeypatch.setattr("gcn.recovery.NEAREST_M", least)
        assert recovery.recover(nearer[0]).has_place.all() == has_place


def test_who_lies_far_outside_of_an_assumed_picture_is_of_another(recovery: MeshRecovery) -> None:
    inside = around_the_camera(0.0)
    shifted = replace(inside, positions_px=inside.positions_px + np.float32(900))
    assert recovery.recover(inside).has_place.all() and not recovery.recover(shifted).has_place.any()
    assert recovery.recover(inside).has_camera.all() and not recovery.recover(shifted).has_camera.any()
    blind = recovery.recover(replace(inside, image_size=None))
    np.testing.assert_allclose(recovery.recover(shifted).joints, blind.joints, atol=1e-4)
    tiny = recovery.recover(replace(inside, image_size=(1, 1)))
    np.testing.assert_allclose(tiny.joints, blind.joints, atol=1e-4)
    assert recovery.recover(shifted, focal_px=1000.0).has_place.all()  # a camera that is told is believed


def test_an_unknown_joint_may_lie_anywhere(recovery: MeshRecovery) -> None:
    keypoints = around_the_camera(0.1)
    keypoints.confidence[0, 9] = 0
    before = recovery.recover(keypoints)
    keypoints.positions_px[0, 9] = 1e38
    after = recovery.recover(keypoints)
    np.testing.assert_allclose(after.vertices, before.vertices, atol=1e-6)
    assert after.misfit[0] == pytest.approx(before.misfit[0])


def test_without_the_size_of_the_picture_the_place_means_nothing(recovery: MeshRecovery) -> None:
    somewhere = replace(around_the_camera(0.35), image_size=None)
    moved = replace(somewhere, positions_px=2 * somewhere.positions_px + 900)
    one, other = (recovery.recover(k).joints for k in (somewhere, moved))
    np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(InputError, match="image size is known"):
        recovery.recover(somewhere, focal_px=1000.0)
    for wrong in (0.0, -5.0, float("nan"), float("inf"), 1e39, 1e-50):
        with pytest.raises(InputError, match="focal length lies between 1 and"):
            recovery.recover(around_the_camera(0.0), focal_px=wrong)


def test_a_person_with_too_few_joints_is_flagged_and_empty_and_the_others_go_on(recovery: MeshRecovery) -> None:
    keypoints = people(3)
    keypoints.confidence[1, MIN_JOINTS - 1 :] = 0.1
    found = recovery.recover(keypoints)
    assert found.valid.tolist() == [True, False, True] and found.flags(1) == ["not_recoverable"]
    assert np.isnan(found.vertices[1]).all() and np.isfinite(found.vertices[[0, 2]]).all()


def test_a_person_shrunk_to_a_point_is_not_recovered(recovery: MeshRecovery) -> None:
    keypoints = people(2)
    keypoints.positions_px[0] = 7.0
    found = recovery.recover(keypoints)
    assert found.valid.tolist() == [False, True] and found.flags(0) == ["not_recoverable"]


def test_the_spread_is_what_the_mirror_image_disagrees_by_and_flags_the_unsure(recovery: MeshRecovery) -> None:
    found = recovery.recover(people(6))
    mirrored = people(6).mirrored_labels()
    mirrored.positions_px[..., 0] *= -1
    other = recovery.recover(mirrored)
    np.testing.assert_allclose(found.spread, other.spread, atol=1e-5)
    assert (found.spread > 0).all()
    unsure = replace(found, spread=np.array([0.01, 0.2, 0.01, 0.2, 0.01, 0.2]))
    assert np.isnan(found.expected_error).all() and not unsure.unsure_joints(1)
    assert [unsure.flags(k) for k in range(3)] == [[], ["unsure"], []]


def test_a_guessed_joint_is_used_and_an_unknown_one_is_not(recovery: MeshRecovery) -> None:
    wrist = COCO17.index("left_wrist")

    def vertices(confidence: float, shift_px: float) -> np.ndarray:
        keypoints = people(1)
        keypoints.confidence[0, wrist] = confidence
        keypoints.positions_px[0, wrist] += shift_px
        return recovery.recover(keypoints).vertices

    assert np.abs(vertices(MIN_CONFIDENCE / 3, 30.0) - vertices(MIN_CONFIDENCE / 3, 0.0)).max() > 1e-3
    np.testing.assert_array_equal(vertices(0.0, 30.0), vertices(0.0, 0.0))


def judge_for(recovery: MeshRecovery) -> ErrorNet:
    torch.manual_seed(1)
    return build_uncertainty(recovery.model.config)


def test_expected_errors_are_those_of_the_network_on_both_looks(recovery: MeshRecovery) -> None:
    labeling, judge = (recovery._labeling, recovery._labeling_config), judge_for(recovery)
    keypoints = people(3)
    keypoints.confidence[1, MIN_JOINTS - 1 :] = 0.1
    found = MeshRecovery(recovery.model, labeling, BODY, uncertainty=judge).recover(keypoints, batch_size=2)
    coco = keypoints.to(COCO19)
    positions, confidence = torch.from_numpy(coco.positions_px), torch.from_numpy(coco.confidence)
    with torch.inference_mode():
        (seen, _), (mirrored, _) = MirrorAveraged(recovery.model, BODY).looks(positions, confidence)
        expected = judge(recovery.model.config.see(positions, confidence).features, seen, mirrored).numpy()
    np.testing.assert_allclose(found.expected_error[[0, 2]], expected[[0, 2]], rtol=1e-4)
    assert np.isnan(found.expected_error[1]).all() and found.flags(1) == ["not_recoverable"]
    plain = recovery.recover(keypoints)
    np.testing.assert_allclose(found.vertices, plain.vertices, atol=1e-6)
    blind = MeshRecovery(recovery.model, labeling, replace(BODY, mirror=None), uncertainty=judge).recover(keypoints)
    assert np.isnan(blind.expected_error).all()
    assert MeshRecovery(recovery.model, labeling, BODY).recover(people(0)).expected_error.shape == (0, 17)


def test_people_and_joints_with_large_expected_errors_are_unsure_whatever_the_spread(recovery: MeshRecovery) -> None:
    expected = np.full((2, 17), UNSURE_EXPECTED_M - 0.01, np.float32)
    expected[1] += 0.02
    expected[:, HUMAN36M17.root_idx] = 0
    expected[0, HUMAN36M17.index("left_wrist")] = UNSURE_JOINT_M + 0.01
    found = replace(recovery.recover(people(2)), expected_error=expected, spread=np.array([0.9, 0.0]))
    assert found.mean_expected_error(0) == pytest.approx(expected[0].sum() / 16)
    assert [found.flags(k) for k in range(2)] == [[], ["unsure"]]
    assert found.unsure_joints(0) == ["left_wrist"]


def test_own_weights_take_the_expected_errors_that_lie_beside_them(tmp_path: Path, recovery: MeshRecovery) -> None:
    weights, judge = tmp_path / "mesh.safetensors", tmp_path / "uncertainty.safetensors"
    config = recovery.model.config
    save_weights(weights, recovery.model, config, {})
    assert np.isnan(MeshRecovery.from_pretrained(weights).recover(people(1)).expected_error).all()
    save_weights(judge, judge_for(recovery), config, {MESH_WEIGHTS: weights_digest(recovery.model)})
    found = MeshRecovery.from_pretrained(weights).recover(people(1)).expected_error
    assert (np.delete(found, HUMAN36M17.root_idx, axis=1) > 0).all()
    save_weights(judge, judge_for(recovery), config, {MESH_WEIGHTS: "0" * 64})
    with pytest.raises(InputError, match=r"uncertainty\.safetensors tells the errors of other mesh weights"):
        MeshRecovery.from_pretrained(weights)


def test_own_weights_take_the_labeling_network_that_lies_beside_them(tmp_path: Path, recovery: MeshRecovery) -> None:
    config = recovery.model.config
    labeling = build_labeling(config)
    save_weights(tmp_path / "mesh.safetensors", recovery.model, config, {})

    def used() -> bool:
        found = MeshRecovery.from_pretrained(tmp_path / "mesh.safetensors")._labeling.state_dict()
        return all(
            v.shape == found[k].shape and torch.allclose(found[k], v, atol=1e-3)
            for k, v in labeling.state_dict().items()
            if k in found
        )

    assert not used()
    save_weights(tmp_path / "labeling.safetensors", labeling, config, {})
    assert used()


def test_without_a_mirror_table_nothing_is_averaged(recovery: MeshRecovery) -> None:
    plain = MeshRecovery(recovery.model, (recovery._labeling, recovery._labeling_config), replace(BODY, mirror=None))
    found, averaged = plain.recover(people(3)), recovery.recover(people(3))
    assert (found.spread == 0).all() and np.abs(found.vertices - averaged.vertices).max() > 1e-4


def test_the_more_probable_labeling_is_used_and_reported(recovery: MeshRecovery, monkeypatch) -> None:
    keypoints = people(6)
    log_odds = torch.tensor([9.0, -9, 9, -9, 9, 2.2])  # the last is more likely than not, but not against the prior
    monkeypatch.setattr(recovery, "_labeling", lambda features: log_odds)
    chosen = recovery.recover(keypoints, exchange=True)
    as_given = recovery.recover(keypoints, exchange=False)
    other = recovery.recover(keypoints.mirrored_labels(), exchange=False)
    assert chosen.exchanged.tolist() == [True, False, True, False, True, False]
    flagged = ["left_right_exchanged" in chosen.flags(k) for k in range(6)]
    assert flagged == chosen.exchanged.tolist() and not as_given.exchanged.any()
    expected = np.where(chosen.exchanged[:, None, None], other.vertices, as_given.vertices)
    np.testing.assert_allclose(chosen.vertices, expected, atol=1e-5)
    np.testing.assert_allclose(chosen.exchange_probability[5], 0.02 / (0.02 + 0.98 * np.exp(-2.2)), rtol=1e-4)


def test_the_mesh_lies_over_the_given_joints_in_the_picture(recovery: MeshRecovery) -> None:
    keypoints = people(3)
    keypoints.confidence[:, COCO17.index("left_wrist")] = 0.0
    found = recovery.recover(keypoints)
    for k in range(3):
        placed = (BODY.regressor(COCO17) @ found.vertices_px(k))[:, :2]
        error = np.linalg.norm(placed - keypoints.positions_px[k], axis=1)[keypoints.confidence[k] > 0]
        size = np.sqrt(np.prod(np.ptp(placed, axis=0)))
        assert error.mean() < 100 and found.misfit[k] == pytest.approx(error.mean() / size, rel=1e-3)


def test_exchanged_joints_take_their_confidence_along(recovery: MeshRecovery, monkeypatch) -> None:
    keypoints = people(1)
    keypoints.confidence[:, COCO17.index("left_wrist")] = 0.0
    monkeypatch.setattr(recovery, "_labeling", lambda features: torch.tensor([9.0]))
    by_hand = recovery.recover(keypoints.mirrored_labels(), exchange=False)
    np.testing.assert_allclose(recovery.recover(keypoints, exchange=True).vertices, by_hand.vertices, atol=1e-5)


def test_any_joint_set_with_hips_and_shoulders_is_taken_and_others_refused(recovery: MeshRecovery) -> None:
    assert recovery.recover(people(1, MPII16)).valid.all()
    headless = JointSet(name="legs", names=("left_knee", "right_knee"), edges=(), root="left_knee")
    with pytest.raises(InputError, match="cannot convert legs to coco19"):
        recovery.recover(people(1, headless))


def test_shipped_networks_are_loaded_without_drawing_random_weights_first() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    MeshRecovery.from_pretrained()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_initialisation_nothing_else_changes() -> None:
    given = torch.full((3,), 7.0)
    with NoInitialisation():
        assert torch.nn.init.kaiming_uniform_(given[:, None]).shape == (3, 1)
        assert torch.nn.init.uniform_(tensor=given) is given
        assert given.tolist() == [7, 7, 7]
        assert (given + torch.ones(3)).tolist() == [8, 8, 8]
    assert torch.nn.init.uniform_(given).max() < 1
