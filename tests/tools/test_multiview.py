"""A made-up recording: bodies whose joints are known, seen by four cameras, one of which takes left for right."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from data.blazepose import Roi
from data.detection import Person
from data.draws import Draws
from data.prior import load_pose_prior
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import BLAZEPOSE33, COCO17, COCO19
from mesh.multiview import ViewCamera
from mesh.rotation import quaternion_to_matrix
from mesh.skinning import JointModel
from tools import command, multiview
from tools.multiview_truth import LIMBS, Views, find_truth

MOMENTS = 6
IN_BLAZEPOSE = list(BLAZEPOSE33.indices(COCO17.names))


def cameras() -> list[ViewCamera]:
    made = []
    for number, yaw in enumerate((10, 95, 190, 280)):
        upright = np.diag([1.0, -1, -1])  # the world has y up
        rotation = upright @ Rotation.from_euler("yx", [yaw, -15], degrees=True).inv().as_matrix()
        made.append(
            ViewCamera(
                name=f"cam{number}", matrix=np.array([[300.0, 0, 100], [0, 300, 150], [0, 0, 1]]),
                distortion=np.zeros(5), rotation=rotation, translation_m=np.array([0, 0, 3.0]), size_px=(200, 300),
            )
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def joints() -> np.ndarray:
    """(T, 17, 3) in the world."""
    generator = torch.Generator().manual_seed(0)
    poses = load_pose_prior().poses(torch.arange(MOMENTS), Draws(MOMENTS, generator))
    model = JointModel(load_body(), (COCO19,))
    found = model(quaternion_to_matrix(poses), torch.zeros(MOMENTS, model.num_shape))[0]
    return (found - found.mean(1, keepdim=True)).numpy()[:, :17].astype(np.float64)


def views(joints_m: np.ndarray, exchanged: Sequence[int] = (), noise_px: float = 0.0) -> Views:
    rng = np.random.default_rng(1)
    shape = (len(joints_m), 4, 33)
    positions, confidence, world = np.zeros((*shape, 2)), np.zeros(shape), np.zeros((*shape, 3))
    for k, camera in enumerate(cameras()):
        order = list(COCO17.flip_permutation) if k in exchanged else slice(None)
        positions[:, k, IN_BLAZEPOSE] = camera.project(joints_m)[:, order]
        world[:, k, IN_BLAZEPOSE] = camera.to_camera(joints_m)[:, order]
    positions[:, :, IN_BLAZEPOSE] += rng.normal(0, noise_px, (*shape[:2], 17, 2))
    confidence[..., IN_BLAZEPOSE] = 1.0
    return Views(positions_px=positions, confidence=confidence, world_m=world)


def test_the_joints_are_those_that_the_cameras_see(joints) -> None:
    truth = find_truth(cameras(), views(joints), refine=False)
    np.testing.assert_allclose(truth.joints_m, joints, atol=1e-6)
    assert truth.trusted.all() and not truth.exchanged.any()
    assert np.nanmax(truth.error_px) < 0.1


def test_the_view_with_left_and_right_exchanged_is_found_and_put_right(joints) -> None:
    truth = find_truth(cameras(), views(joints, exchanged=[2], noise_px=0.5), refine=False)
    assert truth.exchanged[:, 2].all() and truth.exchanged.sum() == MOMENTS
    assert np.linalg.norm(truth.joints_m - joints, axis=-1).max() < 0.05
    first = find_truth(cameras(), views(joints, exchanged=[0]), refine=False)
    assert first.exchanged[:, 0].all() and first.exchanged.sum() == MOMENTS


def test_refinement_mends_a_camera_that_was_moved(joints) -> None:
    moved = cameras()
    turn = Rotation.from_rotvec((0.02, -0.03, 0.02)).as_matrix()  # about its own centre
    moved[1] = replace(moved[1], rotation=turn @ moved[1].rotation, translation_m=turn @ moved[1].translation_m)
    truth = find_truth(moved, views(joints))
    limbs = list(LIMBS)
    assert np.nanmedian(truth.error_before_px[1][:, limbs]) > 3
    assert np.nanmedian(truth.error_px[1][:, limbs]) < 0.7


def test_a_moment_that_one_pair_of_views_alone_sees_is_not_trusted(joints) -> None:
    seen = views(joints)
    seen.confidence[2, :2] = 0
    seen.positions_px[4, 1, IN_BLAZEPOSE[9]] += 80  # the wrist, in one of four: three still agree
    seen.positions_px[5, 1, IN_BLAZEPOSE[9]] += 80
    seen.positions_px[5, 2, IN_BLAZEPOSE[9]] -= 80
    truth = find_truth(cameras(), seen, refine=False)
    assert truth.trusted.tolist() == [True, True, False, True, True, False]
    assert seen.found[2].tolist() == [False, False, True, True]


def test_a_tie_about_the_sides_is_not_trusted(joints) -> None:
    seen, half = views(joints), views(joints, exchanged=[0, 1])
    for name in ("positions_px", "confidence", "world_m"):
        getattr(seen, name)[3] = getattr(half, name)[3]
    truth = find_truth(cameras(), seen, refine=False)
    assert truth.trusted.tolist() == [True, True, True, False, True, True]


def test_a_calibration_in_millimetres_and_an_empty_camera_are_refused(joints) -> None:
    far = [replace(camera, translation_m=camera.translation_m * 1000) for camera in cameras()]
    with pytest.raises(InputError, match="must be in metres"):
        find_truth(far, views(joints), refine=False)
    seen = views(joints)
    seen.confidence[:, 2] = 0
    with pytest.raises(InputError, match="nobody was found in any picture of camera cam2"):
        find_truth(cameras(), seen)


def test_cameras_that_never_agree_are_refused(joints) -> None:
    seen = views(joints)
    seen.positions_px[:] = np.random.default_rng(0).uniform(0, 300, seen.positions_px.shape)
    with pytest.raises(InputError, match="never agree on a whole person"):
        find_truth(cameras(), seen)
    with pytest.raises(InputError, match="at least 3 cameras"):
        find_truth(cameras()[:2], seen)


class RecordedDetector:
    """Gives what `views` hold, moment by moment, camera by camera, and a small bystander."""

    model = "full"

    def __init__(self, given: Views) -> None:
        self.given, self.calls = given, 0

    def people(self, image: np.ndarray, *, tiles: bool | None = None) -> list[Person]:
        t, k = divmod(self.calls, 4)
        self.calls += 1
        positions = self.given.positions_px[t, k]
        named = {"score": 1.0, "steadiness": 1.0, "roi": Roi(np.zeros(2), 1.0)}
        own = Person(
            positions_px=positions, confidence=self.given.confidence[t, k], world_m=self.given.world_m[t, k], **named
        )
        other = Person(positions_px=positions * 0.2, confidence=np.ones(33), world_m=np.zeros((33, 3)), **named)
        return [other, own]


def recording(folder: Path) -> Path:
    for camera in cameras():
        (folder / camera.name).mkdir(parents=True)
        for t in range(MOMENTS):
            Image.new("RGB", camera.size_px, (90, 90, 90)).save(folder / camera.name / f"{t:03d}.png")
    entries = [
        f'[{c.name}]\nname = "{c.name}"\nsize = [200.0, 300.0]\nmatrix = {c.matrix.tolist()}\n'
        f"distortions = [0.0, 0.0, 0.0, 0.0]\nrotation = {Rotation.from_matrix(c.rotation).as_rotvec().tolist()}\n"
        f"translation = {c.translation_m.tolist()}\nfisheye = false\n"
        for c in cameras()
    ]
    (folder / "Calib.toml").write_text("\n".join(entries))
    return folder


def test_the_command_reports_every_view_and_leaves_a_sheet(joints, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("tomllib")
    given = views(joints, exchanged=[3])
    monkeypatch.setattr("tools.command.open_detector", lambda name: RecordedDetector(given))
    folder, out = recording(tmp_path / "rec"), tmp_path / "out"
    assert command.run(multiview.main, [str(folder), "--out", str(out), "--device", "cpu", "--keep-cameras"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["moments"] == report["moments that the cameras agree on"] == MOMENTS
    assert report["detector"] == "full"
    shares = [view["left and right exchanged by the detector"] for view in report["views"].values()]
    assert shares == [0, 0, 0, 1]
    errors = report["errors, mm"]
    own = errors["the detector's own 3D"]
    assert own["cam0"]["mpjpe_mm"] < 1e-3 and own["cam3"]["pa_mpjpe_mm"] > 50
    assert own["cam3"]["facing wrong by > 90 deg (%)"] == 100 and own["all"]["people"] == 4 * MOMENTS
    detected, right, exact = (errors[name] for name in ("as detected", "sides put right", "exact"))
    assert detected["cam3"]["pa_mpjpe_mm"] > right["cam3"]["pa_mpjpe_mm"] + 20
    assert detected["cam0"] == right["cam0"]
    told = errors["focal length told"]  # which is not the diagonal
    assert told.keys() == detected.keys() and told["all"]["mpjpe_mm"] != detected["all"]["mpjpe_mm"]
    for name in ("cam0", "cam1", "cam2", "cam3", "all"):
        assert 5 < exact[name]["pa_mpjpe_mm"] < 90
        assert exact[name]["pa_mpjpe_mm"] == pytest.approx(right[name]["pa_mpjpe_mm"], abs=0.1)
    saved = np.load(out / "truth.npz")
    np.testing.assert_allclose(saved["joints_m"], joints, atol=1e-4)
    assert Image.open(out / "contact_sheet.png").size[1] == 3 * 420
    text = capsys.readouterr().out
    assert text.strip() == (out / "report.md").read_text().strip() and "| cam3 | 100 % |" in text


def test_a_view_with_too_few_joints_is_counted_and_not_measured(joints, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("tomllib")
    given = views(joints)
    trunk = [IN_BLAZEPOSE[COCO17.index(f"{side}_{part}")] for side in ("left", "right") for part in ("shoulder", "hip")]
    given.confidence[2, 1] = 0
    given.confidence[2, 1, trunk] = 0.9
    monkeypatch.setattr("tools.command.open_detector", lambda name: RecordedDetector(given))
    folder, out = recording(tmp_path / "rec"), tmp_path / "out"
    assert command.run(multiview.main, [str(folder), "--out", str(out), "--device", "cpu", "--keep-cameras"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["views with too few joints to recover anybody"] == 1
    assert report["errors, mm"]["as detected"]["cam1"]["people"] == MOMENTS - 1
    assert "Not measured: 1 views" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["rec/cam0", "rec/cam0/deeper", "file/x"])
def test_an_output_folder_that_cannot_be_is_refused_before_anything_is_detected(
    tmp_path: Path, monkeypatch, capsys, where: str
) -> None:
    pytest.importorskip("tomllib")
    monkeypatch.setattr("tools.command.open_detector", lambda name: pytest.fail("too late"))
    folder = recording(tmp_path / "rec")
    (tmp_path / "file").write_text("")
    assert command.run(multiview.main, [str(folder), "--out", str(tmp_path / where)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (lambda d: (d / "Calib.toml").unlink(), (), "expected one calibration file"),
        (lambda d: (d / "calib_b.toml").write_text(""), (), "found Calib.toml, calib_b.toml"),
        (lambda d: (d / "cam1" / "002.png").unlink(), (), "equally many pictures"),
        (lambda d: (d / "cam1").rename(d / "other"), (), "expected the pictures of camera cam1 there"),
        (lambda d: Image.new("RGB", (99, 99)).save(d / "cam0" / "000.png"), (), r"is calibrated for \(200, 300\)"),
        (lambda d: None, ("--every", "0"), "--every must be at least 1"),
        (lambda d: None, ("--calibration", "none.toml"), "cannot read none.toml"),
    ],
)
def test_a_wrong_recording_ends_with_one_line(joints, tmp_path, monkeypatch, capsys, spoil, words, message) -> None:
    pytest.importorskip("tomllib")
    monkeypatch.setattr("tools.command.open_detector", lambda name: RecordedDetector(views(joints)))
    folder = recording(tmp_path / "rec")
    spoil(folder)
    out = tmp_path / "out"
    assert command.run(multiview.main, [str(folder), "--out", str(out), *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and re.search(message, said[0])
    assert not out.exists() or not any(out.iterdir())


def test_no_folder_and_a_file_for_the_output_are_refused(tmp_path: Path, capsys) -> None:
    assert command.run(multiview.main, [str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    (tmp_path / "file").write_text("")
    assert command.run(multiview.main, [str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "no folder" in (said := capsys.readouterr().err) and "is a file" in said
