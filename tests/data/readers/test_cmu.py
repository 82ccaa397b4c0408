"""CMU motion capture to records: known motion in, the same motion out."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.readers.cmu import convert
from data.records import Records
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel
from tests.data.miniatures.cmu import FRAMES, Truth, moving, standing, turn, write_amc, write_asf, write_bvh

WRITERS = {"amc": write_amc, "bvh": write_bvh}


def converted(tmp_path: Path, split: str = "train", out: str = "out", **options: Any) -> Records:
    return convert(tmp_path / "cmu", tmp_path / out, split=split, progress=lambda *_: None, **options)


def write(tmp_path: Path, form: str, **trials: Truth) -> None:
    """Trials named like t01_02 in the folders of their subjects."""
    for name, truth in trials.items():
        subject = name[1:].partition("_")[0]
        folder = tmp_path / "cmu" / subject
        WRITERS[form](folder / f"{name[1:]}.{form}", truth)
        if form == "amc":
            write_asf(folder / f"{subject}.asf")


def local(records: Records) -> np.ndarray:
    return axis_angle_to_matrix(torch.from_numpy(np.array(records["pose"]))).numpy()


@lru_cache(maxsize=1)
def body_model() -> BodyModel:
    return BodyModel(load_body())


def vertices(rotations: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """The free body in the world, (T, V, 3) m."""
    posed = body_model()(torch.from_numpy(rotations.astype(np.float32)), torch.zeros(len(rotations), 10))[0]
    return posed.numpy() + np.asarray(trans)[:, None]


@pytest.mark.parametrize("form", ["amc", "bvh"])
def test_vertices_of_every_frame_are_those_of_the_captured_person(tmp_path: Path, form: str) -> None:
    truth = {"t01_01": moving(1), "t01_02": moving(2), "t17_10": moving(3)}
    write(tmp_path, form, **truth)
    records = converted(tmp_path, rate=0)
    assert len(records) == 3 * FRAMES and records.info.dropped == {}
    for name, trial in truth.items():
        rows = np.flatnonzero(records["sequence"] == name[1:].encode())
        assert records["frame"][rows].tolist() == list(range(FRAMES)) and set(records["person"][rows]) == {
            int(name[1:3])
        }
        found = vertices(local(records)[rows], records["trans"][rows])
        assert np.abs(found - vertices(trial.local, trial.trans)).max() < 1e-4


def own_forward_kinematics(asf: Path, amc: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """World rotation (T, 3, 3) and zero-pose direction (3,) of each bone, read here from the text of the files."""

    def fixed(degrees: Any) -> np.ndarray:
        x, y, z = np.radians(np.asarray(degrees, float))
        return turn("z", z) @ turn("y", y) @ turn("x", x)

    text = asf.read_text()
    axes, directions, dofs = {"root": np.eye(3)}, {}, {"root": "xyz"}
    for block in re.findall(r"begin\n(.*?)\n\s*end", text.partition(":bonedata")[2].partition(":hierarchy")[0], re.S):
        words = {line.split()[0]: line.split()[1:] for line in block.splitlines()}
        (name,) = words["name"]
        axes[name], directions[name] = fixed(words["axis"][:3]), np.array(words["direction"], float)
        dofs[name] = "".join(word[1] for word in words.get("dof", []))
    parents = {}
    for line in text.partition(":hierarchy")[2].splitlines():
        if line.split()[1:]:
            parents |= dict.fromkeys(line.split()[1:], line.split()[0])
    frames = re.split(r"\n\d+\n", amc.read_text())[1:]
    world: dict[str, list[np.ndarray]] = {name: [] for name in axes}
    for frame in frames:
        angles = {line.split()[0]: np.array(line.split()[1:], float) for line in frame.splitlines() if line.split()}
        angles["root"] = angles["root"][3:]
        for name, axis in axes.items():  # the file lists parents first
            turns = dict.fromkeys("xyz", 0.0) | dict(zip(dofs[name], angles.get(name, ())))
            own = axis @ fixed([turns["x"], turns["y"], turns["z"]]) @ axis.T
            world[name].append(own if name == "root" else world[parents[name]][-1] @ own)
    return {name: np.stack(turns) for name, turns in world.items()}, directions


def test_limbs_point_where_those_of_the_source_point_and_the_neck_is_half_way(tmp_path: Path) -> None:
    write(tmp_path, "amc", t01_01=moving(1, 3))
    amc, rng = tmp_path / "cmu" / "01" / "01_01.amc", np.random.default_rng(8)
    words = {"root": "xyz", "ltoes": "x", "rtoes": "x"}
    lines = []
    for line in amc.read_text().splitlines():
        name, *values = line.split()
        if values:
            drawn = [f"{rng.uniform(-25, 25):.6f}" for _ in words.get(name, "xyz")]
            line = " ".join([name, *(values[:3] if name == "root" else ()), *drawn])
        lines.append(line)
    amc.write_text("\n".join([*lines, ""]))
    source, directions = own_forward_kinematics(amc.with_name("01.asf"), amc)
    records = converted(tmp_path, rate=0, source_rate=1, max_turn_deg=1e6, max_root_turn_deg=1e6)
    assert len(records) == 3
    rotations = local(records)
    joints = body_model()(torch.from_numpy(rotations), torch.zeros(3, 10))[1].numpy().astype(np.float64)
    for start, end, bone in (
        ("hip", "knee", "femur"),
        ("knee", "ankle", "tibia"),
        ("shoulder", "elbow", "humerus"),
        ("elbow", "wrist", "radius"),
    ):
        for side in ("left", "right"):
            first, last = SMPL24.indices((f"{side}_{start}", f"{side}_{end}"))
            points = joints[:, last] - joints[:, first]
            points /= np.linalg.norm(points, axis=1, keepdims=True)
            np.testing.assert_allclose(points, source[side[0] + bone] @ directions[side[0] + bone], atol=1e-5)
    world = [rotations[:, 0].astype(np.float64)]
    for joint, parent in enumerate(load_body().parents[1:], start=1):
        world.append(world[parent] @ rotations[:, joint])
    neck = world[SMPL24.index("neck")]
    lower, upper = source["lowerneck"], source["upperneck"]
    np.testing.assert_allclose(neck @ np.swapaxes(lower, 1, 2) @ neck, upper, atol=1e-5)
    np.testing.assert_allclose(world[SMPL24.index("head")], source["head"], atol=1e-5)
    np.testing.assert_allclose(world[SMPL24.index("spine3")], source["thorax"], atol=1e-5)


def test_where_a_trial_has_both_formats_it_is_read_once(tmp_path: Path) -> None:
    for form in ("amc", "bvh"):
        write(tmp_path, form, t01_01=moving(1))
    assert len(converted(tmp_path, rate=0)) == FRAMES
    one, other = (converted(tmp_path, out=form, rate=0, format=form) for form in ("amc", "bvh"))
    np.testing.assert_allclose(local(one), local(other), atol=1e-5)


def test_frames_are_kept_at_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "amc", t01_01=moving(1, 24))
    assert converted(tmp_path)["frame"].tolist() == [0, 4, 8, 12, 16, 20]
    assert converted(tmp_path, out="ten", rate=10)["frame"].tolist() == [0, 12]
    assert converted(tmp_path, out="slow", source_rate=60)["frame"].tolist() == list(range(0, 24, 2))


def test_feet_that_stand_become_level_and_their_toes_straight(tmp_path: Path) -> None:
    write(tmp_path, "amc", t49_01=standing(160, pitch_rad=0.4, toes_rad=-0.2))
    records = converted(tmp_path)
    for side in ("left", "right"):
        for part in ("ankle", "foot"):
            np.testing.assert_allclose(
                local(records)[:, SMPL24.index(f"{side}_{part}")], np.broadcast_to(np.eye(3), (40, 3, 3)), atol=1e-5
            )


def test_feet_without_enough_standing_frames_stay_as_captured(tmp_path: Path) -> None:
    write(tmp_path, "amc", t49_01=standing(80, pitch_rad=0.4, toes_rad=-0.2))
    ankle = local(converted(tmp_path))[:, SMPL24.index("left_ankle")]
    np.testing.assert_allclose(ankle, np.broadcast_to(turn("x", 0.4), (20, 3, 3)), atol=1e-5)


def test_toes_bend_no_further_than_toes_can(tmp_path: Path) -> None:
    write(tmp_path, "amc", t49_01=standing(8, pitch_rad=0, toes_rad=-1.2))
    toes = local(converted(tmp_path))[:, SMPL24.index("right_foot")]
    np.testing.assert_allclose(toes, np.broadcast_to(turn("x", np.radians(-50)), (2, 3, 3)), atol=1e-5)


def test_a_strong_bend_of_the_lowest_spine_joint_goes_on_upwards(tmp_path: Path) -> None:
    truth = moving(1)
    names = SMPL24.indices(("spine1", "spine2", "spine3"))
    truth.local[:, names[0]] = turn("x", np.radians(50))
    write(tmp_path, "amc", t01_01=truth)
    found = local(converted(tmp_path, rate=0))
    bend = np.degrees(np.arccos((np.trace(found[:, names[0]], axis1=1, axis2=2) - 1) / 2))
    np.testing.assert_allclose(bend, 30 + 15 * (1 - np.exp(-20 / 15)), atol=1e-3)
    chest, expected = (r[:, names[0]] @ r[:, names[1]] @ r[:, names[2]] for r in (found, truth.local))
    np.testing.assert_allclose(chest, expected, atol=1e-5)
    passed_on = np.degrees(
        np.arccos(
            (np.trace(found[:, names[1]] @ np.swapaxes(truth.local[:, names[1]], 1, 2), axis1=1, axis2=2) - 1) / 2
        )
    )
    np.testing.assert_allclose(passed_on, 0.6 * (50 - bend), atol=1e-3)


def test_half_of_the_twist_of_the_hand_is_the_forearms(tmp_path: Path) -> None:
    truth = moving(1)
    elbow, wrist = SMPL24.indices(("left_elbow", "left_wrist"))
    truth.local[:, elbow] = np.eye(3)
    truth.local[:, wrist] = turn("x", 0.8)  # the forearm of the free body lies along x
    write(tmp_path, "amc", t01_01=truth)
    found = local(converted(tmp_path, rate=0))
    for joint in (elbow, wrist):
        np.testing.assert_allclose(found[:, joint], np.broadcast_to(turn("x", 0.4), (FRAMES, 3, 3)), atol=2e-3)


@pytest.mark.parametrize(
    ("joint", "frames_of_30", "rule", "count"),
    [("left_elbow", 15, "a joint jumps", 2), ("pelvis", 15, "the root jumps", 12)],
)
def test_jumps_are_dropped_and_counted(tmp_path: Path, joint: str, frames_of_30: int, rule: str, count: int) -> None:
    truth = standing(120, pitch_rad=0, toes_rad=0)
    truth.local[4 * frames_of_30 :, SMPL24.index(joint)] = turn("y", -1.5)
    write(tmp_path, "amc", t01_01=truth)
    records = converted(tmp_path)
    assert records.info.dropped == {rule: count} and len(records) == 30 - count
    assert not set(records["frame"]) & {4 * (frames_of_30 - 1), 4 * frames_of_30}


def test_knees_that_bend_backwards_are_dropped(tmp_path: Path) -> None:
    truth = standing(40, pitch_rad=0, toes_rad=0)
    truth.local[:20, SMPL24.index("right_knee")] = turn("x", -0.7)
    write(tmp_path, "amc", t01_01=truth)
    records = converted(tmp_path)
    assert records.info.dropped == {"beyond the limits of joints": 5} and len(records) == 5


def test_people_are_held_out_whole(tmp_path: Path) -> None:
    write(tmp_path, "amc", t01_01=moving(1), t02_01=moving(2), t02_02=moving(3))
    train, held_out = (
        converted(tmp_path, split, out=split, validation_subjects=(2,)) for split in ("train", "validation")
    )
    assert set(train["person"]) == {1} and set(held_out["person"]) == {2}
    assert [name for name, _ in held_out.sequences()] == ["02_01#2", "02_02#2"]


def test_a_borrowed_skeleton_must_be_named(tmp_path: Path) -> None:
    write(tmp_path, "amc", t01_01=moving(1))
    asf = (tmp_path / "cmu" / "01" / "01.asf").rename(tmp_path / "other.asf")
    with pytest.raises(InputError, match=r"01_01\.amc has no 01\.asf beside it; name a skeleton with --asf"):
        converted(tmp_path)
    assert len(converted(tmp_path, asf=str(asf), rate=0)) == FRAMES


def change(pattern: str, new: str, count: int = 1) -> Any:
    def edit(text: str) -> str:
        assert re.search(pattern, text, re.S)
        return re.sub(pattern, new, text, count=count, flags=re.S)

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("01.asf", change(":hierarchy.*", ""), "01.asf is no whole .asf file: it has no :hierarchy"),
        ("01.asf", change("direction [^\n]*", "direction 0 0 0"), "bone lhipjoint: a bone without direction"),
        ("01.asf", change("direction [^\n]*", "direction 1 nan 0"), "expected 3 finite numbers, got '1 nan 0'"),
        ("01.asf", change("dof rx ry rz", "dof rx l rz"), "degrees of freedom must be rx, ry or rz"),
        ("01.asf", change("root lhipjoint", "root lhipjoint lhipjoint"), "unknown or has two parents"),
        ("01.asf", change("length 0.45", "length 0"), "length must be positive"),
        ("01.asf", change("name lhand", "name lpaw"), "bone 'lhand' is unknown"),
        ("01_01.amc", change("\nrhand [^\n]*\n$", "\n"), "frame 12 is not whole"),
        ("01_01.amc", change(r"\n5\n.*?\n6\n", "\n6\n"), "frame 5 is not whole"),
        ("01_01.amc", change(" [^ ]*\n$", "\n"), "must have 3 numbers in every frame"),
        ("01_01.amc", change("ltoes [^\n]*", "ltoes nan"), "ltoes holds NaN"),
        ("01_01.amc", change("lfemur", "lfemurs", 99), "bone 'lfemurs' is not in"),
        ("01_01.amc", lambda text: "", "no frame 1"),
        ("02_01.bvh", lambda text: text[: len(text) // 2], "frames are announced"),
        ("02_01.bvh", lambda text: text[:500], "it has no MOTION"),
        ("02_01.bvh", change(" [^ ]*\n$", "\n"), "frames must have"),
        ("02_01.bvh", change(" [^ ]*\n$", " nan\n"), "holds NaN, infinity"),
        ("02_01.bvh", change("Frame Time: 0.", "Frame Time: -0."), "Frame Time must be positive"),
        ("02_01.bvh", change("CHANNELS 3", "CHANNELS 4"), "channels of LowerBack are wrong"),
        ("02_01.bvh", change("(CHANNELS 3 [^\n]*\n)", r"\1\1"), "channels of LowerBack are wrong, come twice"),
        ("02_01.bvh", change("CHANNELS 3 Zrot", "CHANNELS 3 Xrot"), "channels of LowerBack are wrong, come twice"),
        ("02_01.bvh", change("CHANNELS 3 [^\n]*\n", ""), "channels of Spine are wrong, come twice or are missing"),
        ("02_01.bvh", change(" [^ ]*\n$", " 1e300\n"), "or numbers beyond 1e+06"),
        ("01_01.amc", change("ltoes [^\n]*", "ltoes 1e300"), "or numbers beyond 1e+06"),
        ("01.asf", change("direction [^\n]*", "direction 1 -1e308 0"), "expected 3 finite numbers, got '1 -1e308 0'"),
        ("02_01.bvh", change("JOINT LeftArm\n", "JOINT LowerBack\n"), "comes twice"),
        ("02_01.bvh", change("LeftArm\n", "abdomen\n"), "DAZ-friendly"),
        ("02_01.bvh", change("LeftArm\n", "Winglet\n"), "has no LeftArm; expected the bones of the CMU files"),
        ("02_01.bvh", change("\t}\n", "\t}\n" + "}\n" * 40), "more braces are closed than opened"),
    ],
)
def test_a_damaged_file_is_named_in_one_line_and_no_records_are_left(
    tmp_path: Path, file: str, edit: Any, message: str
) -> None:
    write(tmp_path, "amc", t01_01=moving(1))
    write(tmp_path, "bvh", t02_01=moving(1))
    path = tmp_path / "cmu" / file[:2] / file
    path.write_text(edit(path.read_text()))
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        converted(tmp_path)
    assert file in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("train", {}, "holds no .amc or .bvh file; expected SUBJECT/SUBJECT_TRIAL.amc or .bvh"),
        ("test", {}, "CMU has the splits train and validation"),
        ("validation", {}, "needs --validation-subjects"),
    ],
)
def test_a_wrong_call_is_refused(tmp_path: Path, split: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "cmu").mkdir()
    with pytest.raises(InputError, match=message):
        converted(tmp_path, split, **options)


def test_a_conversion_goes_on_with_the_subject_where_it_stopped(tmp_path: Path) -> None:
    write(tmp_path, "amc", t01_01=moving(1), t02_01=moving(2))
    bad = tmp_path / "cmu" / "02" / "02_01.amc"
    content = bad.read_text()
    bad.write_text(content[:3000])
    with pytest.raises(InputError):
        converted(tmp_path, rate=0)
    assert len(list((tmp_path / "out.partial").glob("*.npz"))) == 1
    bad.write_text(content)
    assert set(converted(tmp_path, rate=0)["person"]) == {1, 2}
