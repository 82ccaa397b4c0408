"""Records: what is written is read back; what cannot be right is refused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data.record_columns import COLUMNS
from data.records import RecordsWriter, open_records
from mesh.errors import InputError
from mesh.joints import COCO17, HUMAN36M17
from mesh.lock import FolderLock

ROOT = Path(__file__).parents[2]


def rows(count: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Every column there is."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))[:, None, None]
    confidence = rng.random((count, 17)) * (rng.random((count, 17)) > 0.3)
    joint_valid = rng.random((count, 17)) > 0.3
    return {
        "pose": rng.normal(size=(count, 24, 3)),
        "shape": rng.normal(size=(count, 10)),
        "trans": rng.normal(size=(count, 3)),
        "gender": rng.integers(0, 3, count),
        "mesh_valid": rng.random(count) > 0.5,
        "extrinsics": np.concatenate([turn, rng.normal(size=(count, 3, 1))], axis=2),
        "intrinsics": rng.uniform(500, 1000, (count, 4)),
        "joints2d": rng.uniform(0, 500, (count, 17, 2)) * (confidence > 0)[..., None],
        "confidence": confidence,
        "joints3d": rng.normal(size=(count, 17, 3)) * joint_valid[..., None],
        "joint_valid": joint_valid,
        "box": rng.uniform(0, 500, (count, 4)),
        "image": np.array([f"täglich_{'x' * (seed * i)}.jpg" for i in range(count)]),
        "image_size": rng.integers(1, 2000, (count, 2)),
        "sequence": np.array([b"walk"] * count),
        "person": np.full(count, seed),
        "frame": np.arange(count),
    }


def writer(out: Path, **changes: Any) -> RecordsWriter:
    options = {"source": "made", "split": "train", "licence": "free", "joints2d": COCO17, "joints3d": HUMAN36M17}
    return RecordsWriter(out, **{**options, **changes})


def write(out: Path, **chunks: dict[str, np.ndarray]) -> None:
    with writer(out) as records:
        for key, columns in chunks.items():
            records.add(key, columns)
        records.finish()


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_column_is_read_back_in_the_order_of_the_chunks(tmp_path: Path) -> None:
    parts = [rows(5, 0), rows(3, 2)]
    with writer(tmp_path / "out") as records:
        records.add("b", parts[0], {"no camera": 4})
        records.add("empty", {}, {"no camera": 1, "far": 0})
        records.add("a", parts[1])
        result = records.finish()
    assert len(result) == 8 and set(result.info.columns) == set(COLUMNS) == set(parts[0])
    assert result.info.dropped == {"no camera": 5}
    for name, (dtype, _) in COLUMNS.items():
        expected = np.concatenate([part[name] for part in parts])
        assert isinstance(result[name], np.memmap) and name in result
        if dtype == "S":
            expected = np.char.encode(expected) if expected.dtype.kind == "U" else expected
            assert result[name].tolist() == expected.tolist()
        else:
            np.testing.assert_array_equal(result[name], expected.astype(dtype), strict=True)
    result.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", a=rows(4, 1), b=rows(2, 2))
    write(tmp_path / "two", a=rows(4, 1), b=rows(2, 2))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer(tmp_path / "out") as records:
        records.add("a", rows(4, 1), {"far": 2})
        raise RuntimeError("power cut")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    with writer(tmp_path / "out") as records:
        assert not records.has("b")
        records.add("b", rows(2, 2), {"far": 1})
        assert records.has("a")
        result = records.finish()
    assert result.info.dropped == {"far": 3} and result["person"].tolist() == [2, 2, 1, 1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_records import rows, writer
with writer(Path({out!r})) as records:
    for number in range(4):
        if not records.has(str(number)):
            records.add(str(number), rows(3, number))
        print(number, flush=True)
        if number == {stop}:
            sys.stdin.read()
    records.finish()
"""


def test_a_killed_conversion_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "whole", **{str(number): rows(3, number) for number in range(4)})
    script = KILLED.format(root=str(ROOT), tests=str(Path(__file__).parent), out=str(tmp_path / "out"), stop=1)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() + process.stdout.readline() == "0\n1\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    with writer(tmp_path / "out") as records:
        kept = [records.has(str(number)) or records.add(str(number), rows(3, number)) for number in range(4)]
        records.finish()
    assert kept == [True, True, None, None]
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


OPERATIONS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def convert_until(out: Path, operation: int) -> bool:
    """Convert in another process, which ends at the so-and-so-many-th thing it does to a file; whether it did end."""
    if (child := os.fork()) == 0:
        done = 0
        for name in OPERATIONS:

            def counted(original: Any, *args: Any, **options: Any) -> Any:
                nonlocal done
                done += 1
                return os._exit(9) if done == operation else original(*args, **options)

            setattr(os, name, partial(counted, getattr(os, name)))
        with contextlib.suppress(BaseException):
            write_chunks(out)
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def write_chunks(out: Path) -> None:
    with writer(out, settings={"rate": 30}) as records:
        for number in range(2):
            if not records.has(str(number)):
                records.add(str(number), {"pose": np.full((2, 24, 3), number / 2)})
        records.finish()


def test_a_conversion_killed_at_any_operation_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    write_chunks(tmp_path / "whole")
    expected, operation = digest(tmp_path / "whole"), 1
    while convert_until(tmp_path / "out", operation):
        assert not (tmp_path / "out").exists() or digest(tmp_path / "out") == expected
        write_chunks(tmp_path / "out")
        assert digest(tmp_path / "out") == expected
        shutil.rmtree(tmp_path / "out")
        operation += 1
    assert operation > 20 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_chunks_whose_settings_are_lost_are_not_taken_for_those_of_another_conversion(tmp_path: Path) -> None:
    with writer(tmp_path / "out", settings={"rate": 30}) as records:
        records.add("a", rows(4, 1))
    (tmp_path / "out.partial" / "conversion.json").unlink()  # by a process that was killed while it cleaned up
    with writer(tmp_path / "out", settings={"rate": 10}) as records:
        assert not records.has("a")


def test_what_a_killed_attempt_wrote_half_is_removed(tmp_path: Path) -> None:
    with writer(tmp_path / "out") as records:
        records.add("a", rows(4, 1))
    (tmp_path / "out.partial" / ".0123.tmp").write_bytes(b"half a chunk")
    with writer(tmp_path / "out") as records:
        assert not list((tmp_path / "out.partial").glob(".*.tmp")) and records.has("a")


def test_two_conversions_to_one_folder_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "out") as records:
        with pytest.raises(InputError, match=rf"output folder .*out is in use by process {os.getpid()}; wait"):
            writer(tmp_path / "out")
        records.add("a", rows())
    with writer(tmp_path / "out") as records:
        assert records.has("a")
        records.finish()
    with writer(tmp_path / "out"), writer(tmp_path / "out"):  # to find a finished one nobody need wait
        pass


def test_a_conversion_that_another_process_finishes_in_between_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FolderLock.acquire

    def late(self: FolderLock) -> None:
        monkeypatch.undo()
        write(tmp_path / "out", a=rows())
        acquire(self)

    monkeypatch.setattr(FolderLock, "acquire", late)
    with writer(tmp_path / "out") as records:
        assert records.has("a") and len(records.finish()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "source"
    file.write_text("one")
    with writer(tmp_path / "out") as records:
        assert not records.has("a", [file])
        file.write_text("longer")
        with pytest.raises(InputError, match="source changed while it was converted; convert again"):
            records.add("a", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_file_that_changes_and_keeps_its_size_and_time_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "source"
    for content in ("one", "two"):
        file.write_text(content)
        os.utime(file, (1e9, 1e9))
        with writer(tmp_path / "out") as records:
            if content == "one":
                records.has("a", [file])
                records.add("a", rows())
                continue
            with pytest.raises(InputError, match=r"source has changed since .*; delete .*out\.partial and convert"):
                records.has("a", [file])


def test_where_the_files_lie_does_not_matter(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "source").write_text("same")
        with writer(tmp_path / folder / "out") as records:
            records.has("a", [tmp_path / folder / "source"])
            records.add("a", rows())
            records.finish()
    assert digest(tmp_path / "old" / "out") == digest(tmp_path / "new" / "out")


def test_an_attempt_that_kept_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), writer(tmp_path / "deep" / "out") as records:
        records.add("a", {"pose": np.zeros((3, 23, 3))})
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_conversion_that_drops_every_row_says_so(tmp_path: Path) -> None:
    with writer(tmp_path / "out") as records:
        records.add("a", {}, {"no camera": 7})
        with pytest.raises(InputError, match=r"made: no row for split 'train' \(no camera: 7"):
            records.finish()
    assert not (tmp_path / "out").exists()


def test_a_finished_conversion_is_found_and_not_made_again(tmp_path: Path) -> None:
    write(tmp_path / "out", a=rows())
    before = digest(tmp_path / "out")
    with writer(tmp_path / "out") as records:
        assert records.has("a")
        assert len(records.finish()) == 5
    assert digest(tmp_path / "out") == before
    with writer(tmp_path / "out") as records:
        records.has("another")
        with pytest.raises(InputError, match="made of other files"):
            records.finish()


@pytest.mark.parametrize("change", [{"split": "test"}, {"up": "z"}, {"settings": {"every": 5}}, {"joints3d": None}])
@pytest.mark.parametrize("finished", [True, False])
def test_another_conversion_in_the_way_is_refused(tmp_path: Path, change: dict[str, Any], finished: bool) -> None:
    with writer(tmp_path / "out") as records:
        records.add("a", rows())
        if finished:
            records.finish()
    name = "settings.every" if "settings" in change else next(iter(change))
    with pytest.raises(InputError, match=f"holds another conversion .{name}: .*, now "):
        writer(tmp_path / "out", **change)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no records folder"):
        writer(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def changed(name: str, at: Any, value: Any) -> dict[str, np.ndarray]:
    columns = rows()
    columns[name] = np.array(columns[name])
    columns[name][at] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pose": np.zeros((2, 23, 3))}, r"pose must be numbers of shape \(2, 24, 3\), got float64 of \(2, 23, 3\)"),
        ({"pose": np.zeros((2, 24, 3), complex)}, "pose must be numbers"),
        ({"pose": np.zeros((2, 24, 3)), "shape": np.zeros((3, 10))}, r"shape must be numbers of shape \(2, 10\)"),
        ({"pose": np.zeros((2, 24, 3)), "beta": np.zeros((2, 10))}, "no column is called 'beta'"),
        ({"shape": np.zeros((2, 10))}, "at least one of pose, joints3d, joints2d"),
        ({"joints2d": np.zeros((2, 17, 2))}, "joints2d and confidence come only together"),
        (changed("pose", (3, 4, 1), np.nan), "pose of row 3 holds NaN"),
        (changed("shape", (1, 0), 1e60), "shape of row 1 holds NaN or infinity"),
        (changed("pose", (3, 4, 1), 90), "pose of row 3 turns left_knee by 90 rad"),
        (changed("trans", (1, 2), 4500), "trans of row 1 is further out than 1 km"),
        (changed("extrinsics", (2, slice(3), slice(3)), np.diag([1, 1, -1])), "extrinsics of row 2 is no rotation"),
        (changed("extrinsics", (2, slice(3), slice(3)), 2 * np.eye(3)), "extrinsics of row 2 is no rotation"),
        (changed("intrinsics", (0, 1), -5), "intrinsics of row 0 has no focal length"),
        (changed("gender", 4, 3), "gender of row 4 is not 0, 1 or 2"),
        (changed("confidence", (0, 0), 1.5), "confidence of row 0 is not in 0..1"),
        (changed("confidence", (2, slice(None)), 0), "joints2d of row 2 has a position at confidence 0"),
        (changed("joint_valid", (2, slice(None)), False), "joints3d of row 2 has a position where joint_valid is"),
        (changed("box", (2, 3), -1), "box of row 2 has a negative size"),
        (changed("frame", 2, 2**40), "frame holds 1099511627776"),
        ({**rows(), "frame": np.arange(5.0)}, "frame must be whole numbers"),
        ({**rows(), "image": np.array([None] * 5)}, "image must be texts"),
    ],
)
def test_rows_that_cannot_be_right_are_refused_by_name(tmp_path: Path, columns: Any, message: str) -> None:
    with writer(tmp_path / "out") as records, pytest.raises(InputError, match=f"S1/walk.pkl: .*{message}"):
        records.add("S1/walk.pkl", columns)


def test_joints_of_a_set_that_was_not_declared_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "out", joints2d=None) as records, pytest.raises(InputError, match="without a joint set"):
        records.add("a", rows())


def test_chunks_of_different_columns_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "out") as records:
        records.add("a", rows())
        records.add("b", {name: array for name, array in rows().items() if name != "box"})
        with pytest.raises(InputError, match="b: box in only one of this chunk and a"):
            records.finish()
    assert not (tmp_path / "out").exists()


def test_an_unknown_camera_is_allowed_where_the_mesh_is_not_valid(tmp_path: Path) -> None:
    columns = rows()
    columns["extrinsics"][1], columns["mesh_valid"][1] = 0, False
    write(tmp_path / "out", a=columns)
    columns["mesh_valid"][1] = True
    with writer(tmp_path / "two") as records, pytest.raises(InputError, match="row 1 is no rotation"):
        records.add("a", columns)


def damage_header(folder: Path, change: Any) -> None:
    header = yaml.safe_load((folder / "records.yaml").read_text())
    change(header)
    (folder / "records.yaml").write_text(yaml.safe_dump(header, sort_keys=False))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "records.yaml").unlink(), "it has no records.yaml"),
        (lambda f: (f / "records.yaml").write_text("{"), "cannot be read"),
        (lambda f: (f / "records.yaml").write_text("!!python/object/apply:os.system [ls]"), "cannot be read"),
        (lambda f: damage_header(f, lambda h: h.update(up="x")), "up must be one of None, y, z, got 'x'"),
        (
            lambda f: damage_header(f, lambda h: h.update(schema="v2")),
            "-records-1, got 'v2'",
        ),
        (lambda f: damage_header(f, lambda h: h.pop("source")), "no whole header"),
        (lambda f: damage_header(f, lambda h: h.update(count=4)), r"pose must be <f4 of \(4, 24, 3\)"),
        (lambda f: damage_header(f, lambda h: h["columns"].update(beta=h["columns"]["box"])), "unknown column 'beta'"),
        (lambda f: damage_header(f, lambda h: h.update(joints2d="cocco17")), "did you mean 'coco17'"),
        (lambda f: (f / "pose.npy").unlink(), "pose.npy: no such file"),
        (lambda f: os.truncate(f / "pose.npy", 300), "pose.npy: not a whole .npy file"),
        (lambda f: os.truncate(f / "pose.npy", 10), "pose.npy: not a whole .npy file"),
        (lambda f: os.truncate(f / "pose.npy", 10**5), "holds more bytes"),
        (lambda f: np.save(f / "pose.npy", np.zeros((5, 24, 3))), r"holds <f8 of \(5, 24, 3\), but records.yaml says"),
        (lambda f: np.save(f / "image.npy", np.array([{}] * 5)), "image.npy: not a whole .npy file"),
    ],
)
def test_a_damaged_or_hostile_folder_is_refused_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path / "out", a=rows())
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=message) as refused:
        open_records(tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_verify_finds_one_changed_byte(tmp_path: Path) -> None:
    write(tmp_path / "out", a=rows())
    content = bytearray((tmp_path / "out" / "trans.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / "trans.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"trans\.npy has changed"):
        open_records(tmp_path / "out").verify()


def test_sequences_are_told_apart_by_person_and_sorted_by_frame(tmp_path: Path) -> None:
    columns = rows(7)
    columns["sequence"] = np.array(["walk", "walk", "run", "run", "walk", "run", "walk"])
    columns["person"] = np.array([0, 0, 0, 0, 1, 0, 0])
    columns["frame"] = np.array([3, 4, 9, 8, 1, 7, 1])
    write(tmp_path / "out", a=columns)
    found = {name: np.arange(7)[part].tolist() for name, part in open_records(tmp_path / "out").sequences()}
    assert found == {"walk#0": [6, 0, 1], "run#0": [5, 3, 2], "walk#1": [4]}
    assert list(found) == ["walk#0", "run#0", "walk#1"]


def test_sequences_that_lie_together_are_slices(tmp_path: Path) -> None:
    write(tmp_path / "out", a=rows(4, 0), b=rows(3, 1))
    assert open_records(tmp_path / "out").sequences() == [("walk#0", slice(0, 4)), ("walk#1", slice(4, 7))]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path / "out", a={"pose": np.zeros((2, 24, 3))})
    with pytest.raises(InputError, match="has no column 'trans'; it has pose"):
        open_records(tmp_path / "out")["trans"]


def test_a_worker_receives_the_path_and_not_the_content(tmp_path: Path) -> None:
    write(tmp_path / "out", a={"pose": np.ones((5000, 24, 3))})
    sent = pickle.dumps(open_records(tmp_path / "out"))
    assert len(sent) < 1000 and len(pickle.loads(sent)) == 5000


def test_a_million_rows_open_without_being_read(tmp_path: Path) -> None:
    write(tmp_path / "out", a={"pose": np.ones((2, 24, 3)), "shape": np.ones((2, 10))})
    count = 1_000_000
    for name, row in (("pose", (24, 3)), ("shape", (10,))):
        with (tmp_path / "out" / f"{name}.npy").open("wb") as file:  # sparse: the disk holds only the header
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, *row)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 4 * count * int(np.prod(row)))
    damage_header(
        tmp_path / "out",
        lambda h: h.update(count=count) or [c["shape"].__setitem__(0, count) for c in h["columns"].values()],
    )
    records = open_records(tmp_path / "out")
    assert len(records) == count and not records["pose"][count - 1].any()
