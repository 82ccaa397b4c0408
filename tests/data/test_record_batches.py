"""Records with known truth, made from the free body, as batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from data.draws import Draws, step_generator
from data.noise import NoiseConfig
from data.record_batches import RecordBatches, RecordSampling
from data.records import Records, RecordsWriter
from data.synthesis import CameraConfig, SynthesisConfig
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, SMPL24
from mesh.rotation import axis_angle_to_matrix
from mesh.samples import Batch
from mesh.skinning import BodyModel

COUNT = 6
BODY = load_body()
INTRINSICS = np.array([1100.0, 1000.0, 480.0, 270.0], np.float32)


class Truth:
    """Bodies in a world, seen by turned cameras: what every batch must agree with."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pose = rng.normal(0, 0.25, (COUNT, 24, 3)).astype(np.float32)
        self.pose[:, 0] = rng.normal(0, 1.5, (COUNT, 3))
        self.shape = rng.normal(0, 1, (COUNT, 10)).astype(np.float32)
        self.trans = rng.normal(0, 2, (COUNT, 3)).astype(np.float32)
        turn = axis_angle_to_matrix(torch.tensor(rng.normal(0, 1.5, (COUNT, 3)), dtype=torch.float32))
        with torch.no_grad():
            rotations = axis_angle_to_matrix(torch.tensor(self.pose))
            world = BodyModel(BODY)(rotations, torch.tensor(self.shape))[0] + torch.tensor(self.trans)[:, None]
        middle = world.mean(1)
        shift = torch.tensor(rng.uniform((-1, -1, 4), (1, 1, 7)), dtype=torch.float32)
        shift = shift - (turn @ middle[..., None])[..., 0]
        self.extrinsics = torch.cat((turn, shift[..., None]), dim=2).numpy()
        self.vertices = (turn @ world.transpose(1, 2)).transpose(1, 2) + shift[:, None]  # camera frame

    def joints(self, target) -> torch.Tensor:
        return torch.tensor(BODY.regressor(target)) @ self.vertices

    def pixels(self, joints: torch.Tensor) -> torch.Tensor:
        focal, centre = torch.tensor(INTRINSICS[:2]), torch.tensor(INTRINSICS[2:])
        return joints[..., :2] / joints[..., 2:] * focal + centre


TRUTH = Truth()


def write(path: Path, set3d=SMPL24, points: np.ndarray | None = None, up=None, **changes) -> Records:
    confidence = np.ones((COUNT, len(COCO17)), np.float32)
    confidence[2, 5] = 0
    pixels = TRUTH.pixels(TRUTH.joints(COCO17)).numpy()
    pixels[2, 5] = 0
    points = TRUTH.joints(set3d).numpy() if points is None else points
    columns = {
        "pose": TRUTH.pose, "shape": TRUTH.shape, "trans": TRUTH.trans, "extrinsics": TRUTH.extrinsics,
        "intrinsics": np.tile(INTRINSICS, (COUNT, 1)), "joints2d": pixels, "confidence": confidence,
        "joints3d": points, "joint_valid": np.ones((COUNT, len(set3d)), bool),
        "mesh_valid": np.ones(COUNT, bool),
    }  # fmt: skip
    columns |= changes
    with RecordsWriter(
        path, source="test", split="train", licence="none", joints2d=COCO17, joints3d=set3d, up=up
    ) as writer:
        writer.add("all", {k: v for k, v in columns.items() if v is not None})
        return writer.finish()


def batch_of(records: Records, mirror: float = 0.0, noise: float = 1.0, others: float = 0.0, **sampling) -> Batch:
    config = SynthesisConfig(mirror=mirror, other_joints=others, noise=NoiseConfig(clean=noise))
    maker = RecordBatches(records, BODY, config, RecordSampling(**sampling))
    assert len(maker) == COUNT
    return maker.batch(torch.arange(COUNT), Draws(COUNT, step_generator(0, 0)), with_vertices=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return write(tmp_path_factory.mktemp("records") / "r")


def relative(points: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    return points - root[:, None]


@pytest.mark.parametrize("kind", ["projected", "recorded"])
def test_a_batch_is_what_the_camera_saw(records, kind) -> None:
    batch = batch_of(records, input=kind)
    pelvis = TRUTH.joints(HUMAN36M17)[:, HUMAN36M17.root_idx]
    coco = TRUTH.joints(COCO19)
    tolerance = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(batch.vertices_m, relative(TRUTH.vertices, pelvis), **tolerance)
    torch.testing.assert_close(batch.regressed_m, relative(TRUTH.joints(HUMAN36M17), pelvis), **tolerance)
    torch.testing.assert_close(batch.joints_m, relative(coco, coco[:, COCO19.root_idx]), **tolerance)
    assert batch.mesh_valid.all() and batch.joints_valid.all() and batch.regressed_valid.all()
    seen = batch.confidence[:, :17] > 0
    torch.testing.assert_close(batch.keypoints_px[:, :17][seen], TRUTH.pixels(coco)[:, :17][seen], atol=0.02, rtol=0)
    hidden = [[2, COCO19.index("left_shoulder")], [2, COCO19.index("neck")]] if kind == "recorded" else []
    assert (batch.confidence == 0).nonzero().tolist() == hidden
    torch.testing.assert_close(batch.intrinsics, torch.tensor(INTRINSICS).float().expand(COUNT, 4))


@pytest.mark.parametrize("kind", ["projected", "recorded"])
def test_a_mirrored_batch_is_the_mirror_image(records, kind) -> None:
    plain, image = batch_of(records, input=kind), batch_of(records, mirror=1.0, input=kind)
    sign = torch.tensor([-1.0, 1, 1])
    mirrored = plain.vertices_m[:, torch.tensor(BODY.mirror)] * sign
    torch.testing.assert_close(image.vertices_m, mirrored, atol=1e-4, rtol=0)
    for name, joints in (("joints_m", COCO19), ("regressed_m", HUMAN36M17)):
        expected = getattr(plain, name)[:, list(joints.flip_permutation)] * sign
        torch.testing.assert_close(getattr(image, name), expected, atol=1e-4, rtol=0)
    flip = list(COCO19.flip_permutation)
    expected = plain.keypoints_px[:, flip] * sign[:2]
    shift = image.keypoints_px[:, :1] - expected[:, :1]
    seen = image.confidence > 0
    torch.testing.assert_close((expected + shift)[seen], image.keypoints_px[seen], atol=0.05, rtol=0)
    mirror = torch.tensor([1.0, 1, -1, 1])
    torch.testing.assert_close(image.intrinsics, plain.intrinsics * mirror)
    rays = (
        (image.keypoints_px - image.intrinsics[:, None, 2:])[seen],
        (expected - (plain.intrinsics * mirror)[:, None, 2:])[seen],
    )
    if kind == "projected":
        torch.testing.assert_close(*rays, atol=0.05, rtol=0)
    assert shift[..., 1].abs().max() < 0.05 and torch.equal(image.confidence, plain.confidence[:, flip])


def test_an_imagined_camera_keeps_the_pose_and_turns_the_body_about_the_vertical(records) -> None:
    batch = batch_of(records, camera="random")
    recorded = batch_of(records)
    distances = [torch.cdist(b.regressed_m, b.regressed_m) for b in (batch, recorded)]
    torch.testing.assert_close(*distances, atol=1e-4, rtol=0)
    assert not torch.allclose(batch.regressed_m, recorded.regressed_m, atol=0.05)


def test_poses_without_a_camera_stand_upright_and_get_a_shape(tmp_path) -> None:
    pose = np.zeros((COUNT, 24, 3), np.float32)
    with RecordsWriter(tmp_path / "r", source="t", split="train", licence="n", joints2d=None, joints3d=None) as writer:
        writer.add("all", {"pose": pose})
        records = writer.finish()
    config = SynthesisConfig(camera=CameraConfig(tilted=0.0))
    maker = RecordBatches(records, BODY, config, RecordSampling(camera="random"))
    batch = maker.batch(torch.arange(COUNT), Draws(COUNT, step_generator(0, 0)), with_vertices=True)
    head, pelvis = HUMAN36M17.index("head"), HUMAN36M17.root_idx
    assert (batch.regressed_m[:, head, 1] < batch.regressed_m[:, pelvis, 1] - 0.4).all()  # y points down
    heights = batch.vertices_m[..., 1].amax(1) - batch.vertices_m[..., 1].amin(1)
    assert heights.std() > 0.01


LEVEL = SynthesisConfig(mirror=0.5, camera=CameraConfig(tilted=0.0, pitch_deg=(0.0, 0.0), roll_sd_deg=0.0))


def standing(up: str) -> np.ndarray:
    """Poses of people who stand upright, each turned another way about the vertical; (COUNT, 24, 3)."""
    pose = np.zeros((COUNT, 24, 3), np.float32)
    turns = Rotation.from_euler("y", np.linspace(0, 300, COUNT)[:, None], degrees=True)
    to_world = Rotation.from_euler("x", 90 if up == "z" else 0, degrees=True)
    pose[:, 0] = (to_world * turns).as_rotvec()
    return pose


@pytest.mark.parametrize("up", ["y", "z"])
def test_people_before_tilted_cameras_stand_upright_where_the_world_says_which_way_is_up(tmp_path, up) -> None:
    records = write(tmp_path / "r", up=up, pose=standing(up))  # the cameras of the truth are tilted any way
    maker = RecordBatches(records, BODY, LEVEL, RecordSampling(camera="random"))
    batch = maker.batch(torch.arange(COUNT), Draws(COUNT, step_generator(0, 0)), with_vertices=True)
    upwards = batch.regressed_m[:, HUMAN36M17.index("neck")] - batch.regressed_m[:, HUMAN36M17.root_idx]
    across = batch.regressed_m[:, HUMAN36M17.index("left_hip")] - batch.regressed_m[:, HUMAN36M17.index("right_hip")]
    assert (upwards[:, 1] < -0.99 * upwards.norm(dim=1)).all() and (across[:, 1].abs() < 0.02).all()
    places = [tuple((way * 20).round().int().tolist()) for way in across]
    assert len(set(places)) > 1  # seen from different sides


def test_where_nobody_says_which_way_is_up_the_camera_counts_as_level(tmp_path) -> None:
    level = Rotation.from_euler("x", 180, degrees=True).as_matrix()
    extrinsics = np.concatenate([np.tile(level, (COUNT, 1, 1)), np.full((COUNT, 3, 1), 5.0)], axis=2)
    records = write(tmp_path / "r", pose=standing("y"), extrinsics=extrinsics)
    maker = RecordBatches(records, BODY, LEVEL, RecordSampling(camera="random"))
    batch = maker.batch(torch.arange(COUNT), Draws(COUNT, step_generator(0, 0)), with_vertices=True)
    upwards = batch.regressed_m[:, HUMAN36M17.index("neck")] - batch.regressed_m[:, HUMAN36M17.root_idx]
    assert (upwards[:, 1] < -0.99 * upwards.norm(dim=1)).all()


def test_noise_is_laid_over_projections_and_not_over_recorded_joints(records) -> None:
    assert not torch.allclose(batch_of(records, noise=0.0).keypoints_px, batch_of(records).keypoints_px, atol=0.5)
    noisy, clean = (batch_of(records, noise=n, input="recorded").keypoints_px for n in (0.0, 1.0))
    assert torch.equal(noisy, clean)


def test_the_joints_of_other_sets_are_those_the_camera_saw_and_recorded_ones_stay(records) -> None:
    seen = TRUTH.pixels(TRUTH.joints(HUMAN36M17))
    batch = batch_of(records, others=1.0)
    has_nose = batch.confidence[:, COCO19.index("nose")] > 0
    assert (batch.confidence[:, COCO19.index("left_eye")] == 0).all() and has_nose.any() and not has_nose.all()
    for name in ("nose", "left_hip", "right_shoulder"):
        found = batch.keypoints_px[:, COCO19.index(name)]
        torch.testing.assert_close(
            found[has_nose], seen[:, HUMAN36M17.index(name)][batch.ids][has_nose], atol=2e-2, rtol=0
        )
    imagined = batch_of(records, others=1.0, camera="random")
    assert (imagined.confidence[:, COCO19.index("left_eye")] == 0).all()
    assert torch.equal(
        batch_of(records, others=1.0, input="recorded").confidence, batch_of(records, input="recorded").confidence
    )


def test_without_a_body_recorded_joints_are_the_targets_in_their_own_set(tmp_path) -> None:
    human = TRUTH.joints(HUMAN36M17)
    valid = np.ones((COUNT, 17), bool)
    valid[1, HUMAN36M17.index("left_knee")] = False
    valid[3, HUMAN36M17.root_idx] = False
    points = np.where(valid[..., None], human.numpy(), 0)
    without = dict.fromkeys(("pose", "shape", "trans", "mesh_valid", "extrinsics"))
    records = write(tmp_path / "r", set3d=HUMAN36M17, points=points, joint_valid=valid, **without)
    batch = batch_of(records, input="recorded")
    assert not batch.mesh_valid.any() and (batch.vertices_m == 0).all()
    expected = torch.tensor(valid)
    expected[3] = False  # without a root nothing can be relative to it
    assert torch.equal(batch.regressed_valid, expected)
    root = human[:, HUMAN36M17.root_idx]
    torch.testing.assert_close(batch.regressed_m[expected], relative(human, root)[expected], atol=1e-5, rtol=0)
    assert not batch.joints_valid.any()  # Human3.6M's joints are no truth for COCO's, whatever their names


def test_rows_without_mesh_truth_are_masked(tmp_path) -> None:
    valid = np.arange(COUNT) % 2 == 0
    records = write(tmp_path / "r", mesh_valid=valid)
    batch = batch_of(records, input="recorded")
    assert batch.mesh_valid.tolist() == valid.tolist() and (batch.vertices_m[1] == 0).all()
    assert batch.regressed_valid[0].all() and not batch.regressed_valid[1].any()  # smpl24 is neither set


def test_only_rows_with_a_body_are_projected(tmp_path) -> None:
    valid = np.arange(COUNT) % 2 == 0
    records = write(tmp_path / "r", mesh_valid=valid)
    maker = RecordBatches(records, BODY, SynthesisConfig(), RecordSampling())
    assert len(maker) == COUNT / 2
    batch = maker.batch(torch.arange(3), Draws(3, step_generator(0, 0)), with_vertices=True)
    assert batch.ids.tolist() == [0, 2, 4] and batch.mesh_valid.all() and torch.isfinite(batch.keypoints_px).all()
    nobody = write(tmp_path / "none", mesh_valid=np.zeros(COUNT, bool))
    with pytest.raises(InputError, match="no row has a body"):
        RecordBatches(nobody, BODY, SynthesisConfig(), RecordSampling())


@pytest.mark.parametrize(
    ("missing", "sampling", "message"),
    [
        ("joints2d", {"input": "recorded"}, "has no joints2d, which input recorded needs"),
        ("pose", {}, "has no pose, which input projected needs"),
        ("intrinsics", {}, "has no intrinsics, which camera recorded needs"),
        ("truth", {"input": "recorded"}, "has neither bodies nor 3D joints"),
        (None, {"input": "recorded", "camera": "random"}, "recorded 2D joints belong to the recorded camera"),
    ],
)
def test_what_the_records_lack_is_said_at_once(tmp_path, missing, sampling, message) -> None:
    pairs = {"joints2d": ("joints2d", "confidence"), "truth": ("pose", "mesh_valid", "joints3d", "joint_valid")}
    gone = dict.fromkeys(pairs.get(missing, (missing,) if missing else ()))
    records = write(tmp_path / "r", **gone)
    with pytest.raises(InputError, match=message):
        RecordBatches(records, BODY, SynthesisConfig(), RecordSampling(**sampling))


def test_rows_without_a_camera_are_left_out_where_it_is_needed(tmp_path: Path) -> None:
    intrinsics = np.tile(INTRINSICS, (COUNT, 1)).astype(np.float32)
    intrinsics[1] = 0
    records = write(tmp_path / "r", intrinsics=intrinsics)
    assert len(RecordBatches(records, BODY, SynthesisConfig(), RecordSampling())) == COUNT - 1
    recorded = RecordBatches(records, BODY, SynthesisConfig(mirror=0.0), RecordSampling(input="recorded"))
    batch = recorded.batch(torch.arange(COUNT), Draws(COUNT, step_generator(0, 0)), with_vertices=False)
    assert (batch.intrinsics == 0).all(1).nonzero().tolist() == [[1]]
    nowhere = write(tmp_path / "n", intrinsics=0 * intrinsics)
    with pytest.raises(InputError, match="no row has a camera"):
        RecordBatches(nowhere, BODY, SynthesisConfig(), RecordSampling())
