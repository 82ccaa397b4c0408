"""What all readers share: an attempt goes on only with the files that it began with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from data.records import RecordsWriter
from mesh.errors import InputError
from tests.data.miniatures import cmu, human36m, mpii, pw3d
from tests.data.miniatures.amass import write_amass
from tests.data.miniatures.coco import write_coco
from tests.data.miniatures.muco import write_muco
from tests.data.miniatures.poses import write_poses

BODY = str(human36m.BODY)


def write_amc(root: Path) -> None:
    cmu.write_asf(root / "01" / "01.asf")
    cmu.write_amc(root / "01" / "01_01.amc", cmu.moving(1))
    cmu.write_bvh(root / "02" / "02_01.bvh", cmu.moving(2))


def write_human36m(root: Path) -> None:
    human36m.write_detections(root / "found.json", human36m.write(root))


# Reader, what makes its files, how it is called, and the files on each of which the result depends.
CASES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any], tuple[str, ...]]] = {
    "pw3d": ("pw3d", pw3d.write_official, {"split": "validation"}, ("sequenceFiles/validation/courtyard_mini_00.pkl",)),
    "pw3d-pose2mesh": (
        "pw3d",
        pw3d.write_pose2mesh,
        {"split": "validation"},
        ("data/3DPW_latest_validation.json", "data/darkpose_3dpw_validationset_output.json"),
    ),
    "human36m": (
        "human36m",
        write_human36m,
        {"split": "test", "body": "{}/body.npz", "detections": "{}/found.json"},
        (
            *(f"annotations/Human36M_subject9_{part}.json" for part in ("data", "camera", "joint_3d", "smpl_param")),
            "found.json",
            "body.npz",
        ),
    ),
    "coco": (
        "coco",
        write_coco,
        {"split": "train", "body": "{}/body.npz"},
        ("annotations/person_keypoints_train2017.json", "annotations/coco_smplify_train.json", "body.npz"),
    ),
    "muco": (
        "muco",
        write_muco,
        {"split": "train", "body": "{}/body.npz"},
        ("data/MuCo-3DHP.json", "data/smpl_param.json", "body.npz"),
    ),
    "mpii": ("mpii", mpii.write_mat, {"split": "train"}, (mpii.MAT_NAME,)),
    "amass": (
        "amass",
        write_amass,
        {"split": "all", "body": "{}/body.npz"},
        ("CMU/01/01_01_poses.npz", "body.npz"),
    ),
    "cmu": (
        "cmu",
        write_amc,
        {"split": "train", "body": "{}/body.npz"},
        ("01/01.asf", "01/01_01.amc", "02/02_01.bvh", "body.npz"),
    ),
    "poses": ("poses", lambda root: write_poses(root / "p.npz"), {"split": "train", "root": "{}/p.npz"}, ("p.npz",)),
}


def convert(case: str, root: Path, out: Path) -> Any:
    name, _, options, _ = CASES[case]
    given = {key: value.format(root) if isinstance(value, str) else value for key, value in options.items()}
    reader = import_module(f"data.readers.{name}")
    return reader.convert(Path(given.pop("root", root)), out, progress=lambda *_: None, **given)


@pytest.fixture(scope="module", params=list(CASES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A case and the root of its files."""
    root = tmp_path_factory.mktemp(request.param)
    CASES[request.param][1](root)
    (root / "body.npz").write_bytes(human36m.BODY.read_bytes())
    return request.param, root


def lengthen(file: Path) -> None:
    """Another file with the same meaning, so that no reader finds anything wrong with it."""
    with file.open("ab") as stream:
        stream.write(b"\n")


def test_a_changed_file_stops_an_unfinished_conversion_and_is_not_found_as_finished(
    made: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, root = made

    def killed(self: RecordsWriter) -> Any:
        raise KeyboardInterrupt

    convert(case, root, tmp_path / "finished")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecordsWriter, "finish", killed)
        convert(case, root, tmp_path / "out")
    for name in CASES[case][3]:
        content = (root / name).read_bytes()
        lengthen(root / name)
        with pytest.raises(InputError, match=r"has changed since .* was begun; delete .*out\.partial and") as refused:
            convert(case, root, tmp_path / "out")
        assert str(root / name) in str(refused.value) and "\n" not in str(refused.value)
        if name == CASES[case][3][0]:
            with pytest.raises(InputError, match="finished was made of files that have changed since; delete it or"):
                convert(case, root, tmp_path / "finished")
        (root / name).write_bytes(content)
    assert len(convert(case, root, tmp_path / "out")) == len(convert(case, root, tmp_path / "finished"))
