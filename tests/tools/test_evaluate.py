"""The evaluator: known truth in, known error out; the command line from an official folder to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.keypoints import read_keypoints
from data.noise import NoiseConfig
from data.readers import pw3d
from data.records import Records, RecordsWriter
from gcn.evaluation import predict_mesh
from gcn.pose2mesh import ModelConfig, build_lifter, save_weights
from gcn.posenet import PoseNetConfig
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17
from mesh.protocols import PROTOCOLS, JointRegression, protocol
from mesh.smoothing import SavitzkyGolay
from tests.data.miniatures.pw3d import UNSEEN, PersonTruth, write_official
from tools import command, evaluate
from tools.evaluation_compare import card_differences
from tools.evaluation_pictures import choose
from tools.evaluation_records import RecordSamples, RecordSettings
from tools.evaluation_report import read_report
from tools.evaluation_scores import ACCELERATION, Networks, Scored, score

BODY = load_body()
CPU = torch.device("cpu")
ERRORS = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PersonTruth]]:
    """A small 3DPW in the official layout, and the truth of the frames that count."""
    root = tmp_path_factory.mktemp("official")
    return root, write_official(root)


@pytest.fixture(scope="module")
def records(official: tuple[Path, list[PersonTruth]], tmp_path_factory: pytest.TempPathFactory) -> Records:
    return pw3d.convert(official[0], tmp_path_factory.mktemp("made") / "records", split="validation")


def samples_of(records: Records, detections: Any = None, **changes: Any) -> RecordSamples:
    settings = RecordSettings(
        protocol=protocol("pw3d-pose2mesh"),
        input="gt",
        bodies={"neutral": BODY},
        noise=NoiseConfig(clean=0),
        device=CPU,
    )
    return RecordSamples(records, replace(settings, **changes), detections)


class Oracle(nn.Module):
    """Knows each person by their 2D joints, and says where the vertices are, changed as asked."""

    def __init__(self, samples: RecordSamples, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.known: dict[bytes, Tensor] = {}
        for number in range(len(samples)):
            batch = samples.track(number).batch
            assert batch.vertices_m is not None
            changed = change(batch.vertices_m)
            self.known |= {pose.numpy().tobytes(): changed[i] for i, pose in enumerate(batch.keypoints_px)}

    def forward(self, keypoints: Tensor, confidence: Tensor, intrinsics: Tensor | None = None) -> tuple[None, Tensor]:
        return None, torch.stack([self.known[pose.numpy().tobytes()] for pose in keypoints])


def networks_of(mesh: nn.Module | None) -> Networks:
    config = ModelConfig(posenet=PoseNetConfig(width=8, blocks=0))
    torch.manual_seed(0)
    return Networks(posenet=build_lifter(config), config=config, mesh=mesh)  # type: ignore[arg-type]


def scored(samples: RecordSamples, change: Callable[[Tensor], Tensor], rules: str = "pw3d-pose2mesh") -> Scored:
    return score(networks_of(Oracle(samples, change)), samples, protocol(rules), BODY, None, CPU)[""]


def run(*argv: object) -> int:
    return command.run(evaluate.main, [str(a) for a in argv])


def write_records(out: Path, **columns: np.ndarray) -> Records:
    """Records with human36m17 as their recorded joints."""
    with RecordsWriter(
        out, source="test", split="test", licence="none", joints2d=COCO17, joints3d=HUMAN36M17
    ) as writer:
        writer.add("all", columns)
        return writer.finish()


# --- known truth


@pytest.mark.parametrize("name", [name for name, rules in PROTOCOLS.items() if rules.truth == "mesh"])
def test_a_network_that_knows_the_truth_has_no_error(records: Records, name: str) -> None:
    values = scored(samples_of(records, protocol=protocol(name)), lambda v: v, name).summary()
    assert all(values[metric] < 1e-3 for metric in (*ERRORS, ACCELERATION))
    assert values["pck_150mm_percent"] == 100 and values["facing wrong by > 90 deg (%)"] == 0


def test_a_network_that_is_wrong_by_a_known_amount_gets_that_error(records: Records) -> None:
    samples = samples_of(records, protocol=protocol("smpl24"))
    larger = scored(samples, lambda v: 1.2 * v, "smpl24")
    truth = torch.cat([samples.track(i).batch.vertices_m for i in range(len(samples))]).double()
    joints = JointRegression(BODY, protocol("smpl24").joint_set)(truth)[0]
    expected = 200 * (joints - joints[:, :1]).norm(dim=-1).mean().item()
    assert larger.summary()["mpjpe_mm"] == pytest.approx(expected, abs=1e-3)
    expected = 200 * (truth - joints[:, :1]).norm(dim=-1).mean().item()
    assert larger.summary()["mpvpe_mm"] == pytest.approx(expected, abs=1e-3)
    assert larger.summary()["pa_mpvpe_mm"] < 1e-3


def test_a_mirrored_answer_and_a_turned_one_are_wrong(records: Records) -> None:
    samples = samples_of(records)
    mirrored = scored(samples, lambda v: v * torch.tensor([-1.0, 1, 1])).summary()
    assert min(mirrored[name] for name in ERRORS) > 20
    turned = scored(samples, lambda v: v * torch.tensor([-1.0, 1, -1])).summary()
    assert turned["facing wrong by > 90 deg (%)"] == 100 and turned["pa_mpjpe_mm"] < 1e-3 < turned["mpjpe_mm"]


def test_the_truth_is_the_people_that_made_the_dataset(
    records: Records, official: tuple[Path, list[PersonTruth]]
) -> None:
    samples = samples_of(records)
    tracks = [samples.track(number) for number in range(len(samples))]
    assert [t.name for t in tracks] == ["courtyard_mini_00#0", "courtyard_mini_00#1", "downtown_mini_00#0"]
    assert [t.frames.tolist() for t in tracks if t.frames is not None] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    for track in tracks:
        for place, row in enumerate(track.rows):
            person = official[1][row]
            pelvis = BODY.regressor(HUMAN36M17)[0] @ person.vertices
            assert track.batch.vertices_m is not None and track.view is not None
            np.testing.assert_allclose(track.batch.vertices_m[place], person.vertices - pelvis, atol=1e-4)
            np.testing.assert_allclose(track.view.pelvis_m[place], pelvis, atol=1e-4)
            np.testing.assert_allclose(track.batch.keypoints_px[place], person.coco, atol=0.1)
    assert all((t.batch.confidence == 1).all() for t in tracks)


def test_each_gender_is_made_by_its_body(records: Records, official: tuple[Path, list[PersonTruth]]) -> None:
    giant = replace(
        BODY,
        name="giant",
        template=1.5 * BODY.template,
        shape_dirs=1.5 * BODY.shape_dirs,
        pose_dirs=1.5 * BODY.pose_dirs,
    )
    bodies: dict[str, Body] = {"neutral": BODY, "male": giant}
    samples, plain = samples_of(records, bodies=bodies), samples_of(records)
    for number, size in enumerate((1.5, 1.0, 1.0)):  # the first is a man
        grown, usual = samples.track(number).batch.vertices_m, plain.track(number).batch.vertices_m
        assert grown is not None and usual is not None
        np.testing.assert_allclose(grown, size * usual, atol=1e-4)


def test_no_figure_depends_on_the_batch_size(records: Records) -> None:
    samples = samples_of(records)
    oracle = Oracle(samples, lambda v: v * v)
    batch = samples.track(0).batch
    assert torch.equal(predict_mesh(oracle, batch, 1), predict_mesh(oracle, batch, 256))  # type: ignore[arg-type]


# --- what is measured, and what is not


def test_detections_are_those_of_the_records_and_the_unseen_stay_unseen(records: Records) -> None:
    samples = samples_of(records, input="detected")
    batch = samples.track(2).batch
    seen = batch.confidence[UNSEEN[2]] > 0
    assert not seen[COCO19.index(UNSEEN[3])] and seen[COCO19.index("nose")]
    exact = samples_of(records).track(2).batch
    assert (batch.keypoints_px - exact.keypoints_px)[batch.confidence > 0].abs().max() < 0.1


def test_noise_is_a_function_of_the_seed(records: Records) -> None:
    one, same, other = (samples_of(records, input="noisy", seed=seed).track(0).batch for seed in (1, 1, 2))
    assert torch.equal(one.keypoints_px, same.keypoints_px) and not torch.equal(one.keypoints_px, other.keypoints_px)
    assert (one.keypoints_px - samples_of(records).track(0).batch.keypoints_px).abs().max() > 1


def test_rows_that_cannot_be_measured_are_counted(tmp_path: Path) -> None:
    rows = 6
    intrinsics = np.tile(np.array([1000.0, 1000, 500, 500]), (rows, 1))
    intrinsics[4] = 0
    joints = np.ones((rows, 17, 3))
    valid = np.ones((rows, 17), bool)
    joints[5, 3], valid[5, 3] = 0, False
    made = write_records(
        tmp_path / "r", pose=np.zeros((rows, 24, 3)), shape=np.zeros((rows, 10)), trans=np.full((rows, 3), 4.0),
        mesh_valid=np.arange(rows) != 0, intrinsics=intrinsics, joints3d=joints, joint_valid=valid,
        image=np.array([f"s_09_act_02_subact_01_ca_0{4 if n != 2 else 1}_{n:06d}.jpg" for n in range(rows)]),
    )  # fmt: skip
    samples = samples_of(made, protocol=protocol("human36m-p2"))
    assert samples.left_out == {
        "image is not one of _ca_04": 1, "mesh is not valid": 1, "camera is not known": 1, "joints are not valid": 1,
    }  # fmt: skip
    assert len(samples) == 1 and samples.track(0).rows.tolist() == [1, 3]
    assert samples_of(made, protocol=protocol("human36m-p1")).track(0).rows.tolist() == [1, 2, 3]


def test_fewer_rows_are_spread_evenly_and_then_no_motion_is_judged(records: Records) -> None:
    samples = samples_of(records, count=4)
    tracks = [samples.track(number) for number in range(len(samples))]
    assert np.concatenate([t.rows for t in tracks]).tolist() == [0, 3, 7, 10]
    assert all(t.frames is None for t in tracks)


def test_smoothed_sequences_are_scored_beside_the_raw_ones(records: Records) -> None:
    samples = samples_of(records)
    oracle = Oracle(samples, lambda v: v + 0.01 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)))
    both = score(networks_of(oracle), samples, protocol("smpl24"), BODY, SavitzkyGolay(window=3, order=1), CPU)
    assert both.keys() == {"", "smoothed"}
    assert len(both["smoothed"].rows) == len(both[""].rows) == 11
    assert both["smoothed"].values["mpvpe_mm"].mean() != both[""].values["mpvpe_mm"].mean()
    with pytest.raises(InputError, match="--smooth needs sequences"):
        few = samples_of(records, count=4)
        score(networks_of(Oracle(few, lambda v: v)), few, protocol("smpl24"), BODY, SavitzkyGolay(), CPU)


# --- detections from a file


def coco_json(records: Records, *, with_ids: bool) -> list[dict[str, Any]]:
    """Every row's 2D joints in reverse order, as a detector would list them."""
    people = []
    for row in reversed(range(len(records))):
        points = np.concatenate((records["joints2d"][row], records["confidence"][row][:, None]), axis=1)
        person = {
            "image_id": bytes(records["image"][row]).decode(),
            "keypoints": points[:17].ravel().tolist(),
            "score": 1,
        }
        people.append({**person, **({"idx": int(records["person"][row])} if with_ids else {})})
    return people


def test_an_array_has_one_pose_for_each_row(records: Records, tmp_path: Path) -> None:
    poses = np.random.default_rng(0).uniform(1, 500, (len(records), 17, 2)).astype(np.float32)
    np.save(tmp_path / "p.npy", poses)
    given = samples_of(records, read_keypoints(tmp_path / "p.npy", joint_set=COCO17), input="detected")
    np.testing.assert_array_equal(given.track(1).batch.keypoints_px[:, :17], poses[given.track(1).rows])
    np.save(tmp_path / "q.npy", poses[:5])
    with pytest.raises(InputError, match="one pose for each of 11 rows, got 5"):
        samples_of(records, read_keypoints(tmp_path / "q.npy", joint_set=COCO17), input="detected")


def test_detections_find_their_people_by_image_and_id_never_by_position(records: Records, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(coco_json(records, with_ids=True)))
    file = read_keypoints(tmp_path / "d.json")
    own = samples_of(records, input="detected")
    given = samples_of(records, file, input="detected")
    for number in range(len(own)):
        torch.testing.assert_close(given.track(number).batch.keypoints_px, own.track(number).batch.keypoints_px)
    (tmp_path / "e.json").write_text(json.dumps(coco_json(records, with_ids=False)))
    with pytest.raises(InputError, match="2 people without ids that say who of the records is who"):
        samples_of(records, read_keypoints(tmp_path / "e.json"), input="detected")


def test_rows_without_a_detection_are_measured_and_counted(records: Records, tmp_path: Path) -> None:
    alone = [p for p in coco_json(records, with_ids=False) if "downtown" in p["image_id"]][1:]
    (tmp_path / "d.json").write_text(json.dumps(alone))
    samples = samples_of(records, read_keypoints(tmp_path / "d.json"), input="detected")
    assert samples.notes == {"measured without any detected joint": 8}
    assert sum(len(samples.track(n).rows) for n in range(len(samples))) == 11


# --- the command line


def test_an_official_folder_is_measured_from_end_to_end(
    official: tuple[Path, list[PersonTruth]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, before = official[0], sorted(official[0].rglob("*"))
    argv = ("--dataset", "pw3d", "--root", root, "--split", "validation", "--out", tmp_path / "o", "--vis", 1)
    assert run(*argv, "--input", "gt", "--smooth", "savgol") == 0
    assert sorted(root.rglob("*")) == before  # nothing is written into the dataset
    printed = capsys.readouterr()
    assert "mpvpe_mm" in printed.out and "true meshes of male, female people" in printed.err
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert report["protocol"]["name"] == "pw3d-pose2mesh" and report["protocol"]["samples"] == 11
    assert report["protocol"]["dropped in conversion"] == {"camera pose not valid": 1}
    assert report["metrics"].keys() == {"gt", "gt savgol"}
    assert report["metrics"]["gt"]["mpvpe_mm"] > report["metrics"]["gt"]["pa_mpjpe_mm"] > 10
    low, high = report["intervals"]["gt"]["mpjpe_mm"]
    assert low < report["metrics"]["gt"]["mpjpe_mm"] < high and "2 sequences" in report["intervals are"]
    rows = list(csv.DictReader((tmp_path / "o" / "per_sequence.csv").open()))
    people = [(row["sequence"], row["person"], row["samples"]) for row in rows if row["input"] == "gt"]
    assert people == [("courtyard_mini_00", "0", "4"), ("courtyard_mini_00", "1", "3"), ("downtown_mini_00", "0", "4")]
    mean = sum(float(row["mpjpe_mm"]) * int(row["samples"]) for row in rows if row["input"] == "gt") / 11
    assert mean == pytest.approx(report["metrics"]["gt"]["mpjpe_mm"], abs=1e-3)
    joints = list(csv.DictReader((tmp_path / "o" / "per_joint.csv").open()))
    own = [float(row["mean_mm"]) for row in joints if row["input"] == "gt"]
    assert len(own) == 14 and np.mean(own) == pytest.approx(report["metrics"]["gt"]["mpjpe_mm"], abs=1e-3)
    pictures = {p.name for p in (tmp_path / "o" / "pictures" / "gt").iterdir()}
    kinds = ("worst_0", "median_0", "best_0")
    assert pictures == {f"{kind}{end}" for kind in kinds for end in (".png", "_predicted.obj", "_true.obj")}


def test_a_lifter_alone_is_measured_by_its_joints(
    records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = networks_of(None)
    save_weights(tmp_path / "lifter.safetensors", networks.posenet, networks.config, {})
    argv = ("--dataset", "records", "--root", records.path, "--weights", tmp_path / "lifter.safetensors")
    assert run(*argv, "--out", tmp_path / "o") == 0
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert report["metrics"].keys() == {"gt", "detected"}
    assert report["metrics"]["gt"].keys() == {
        "lift_mpjpe_mm", "lift_pa_mpjpe_mm", "lift_mpjpe_mm (median)", "lift_pa_mpjpe_mm (median)",
    }  # fmt: skip
    assert report["protocol"]["root of joints"] == "coco19 pelvis"
    samples = samples_of(records)
    assert len(list(csv.DictReader((tmp_path / "o" / "per_joint.csv").open()))) == 2 * 19
    assert sum(len(samples.track(n).rows) for n in range(len(samples))) == report["protocol"]["samples"]


@pytest.mark.usefixtures("nobody_reads")
def test_results_are_written_before_anything_is_printed(tmp_path: Path) -> None:
    argv = ("--dataset", "prior", "--input", "gt", "--samples", "4", "--vis", "1", "--out", str(tmp_path))
    with pytest.raises(BrokenPipeError):
        evaluate.main(argv)
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["samples"] == 4
    assert (tmp_path / "pictures" / "gt" / "best_0.png").is_file()


def test_two_runs_are_compared_beside_the_published_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [{**protocol(name).card(), "split": "validation"} for name in ("pw3d-pose2mesh", "smpl24")]
    for name, card, value in zip("ab", (cards[0], cards[1]), (60.0, 52.5)):
        content = {"protocol": card, "metrics": {"gt": {"mpjpe_mm": value}}, "weights": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert run("--compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    printed = capsys.readouterr()
    assert "60.00" in printed.out and "52.50" in printed.out and "-7.50" in printed.out
    rows = [line for line in printed.out.splitlines() if "GATOR (2023)" in line]
    assert rows and all("published" in row for row in rows) and "GATOR README" in rows[0]
    assert "A is not comparable with the published figures: source is -, not 3DPW" in printed.out
    assert "warning: the protocols differ: name: A pw3d-pose2mesh, B smpl24" in printed.err
    assert run("--compare", tmp_path / "a.json", tmp_path / "a.json") == 0
    assert capsys.readouterr().err == ""


def test_where_the_data_lay_makes_no_difference_between_cards() -> None:
    assert card_differences({"root": "/a", "unit": "mm"}, {"root": "/b", "unit": "mm"}) == []
    assert card_differences({"unit": "mm"}, {"unit": "mm", "seed": 1}) == ["seed: A -, B 1"]


@pytest.mark.parametrize("text", ["", "[]", '{"protocol": {}}', '{"protocol": {}, "metrics": {"gt": {"x": "y"}}}'])
def test_what_is_no_report_is_not_compared(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"no metrics\.json of tools/evaluate\.py"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "say what to measure on"),
        (("--dataset", "records"), "needs --root DIR"),
        (("--dataset", "poses"), "needs --root FILE.npz"),
        (("--dataset", "records", "--root", "nowhere"), "is no records folder"),
        (("--dataset", "pw3d", "--root", "nowhere", "--out", "{tmp}/o"), "no folder nowhere"),
        (("--dataset", "pw3d", "--root", "{official}"), "say where with --records DIR or --out DIR"),
        (("--dataset", "pw3d", "--root", "{official}", "--records", "{official}/r"), "lies inside the dataset"),
        (("--dataset", "records", "--root", "{records}", "--split", "test"), "is the split 'validation', not 'test'"),
        (("--dataset", "records", "--root", "{records}", "--protocol", "pw3d"), "did you mean 'pw3d-"),
        (("--dataset", "records", "--root", "{records}", "--protocol", "human36m-p1"), "has smpl24; choose a protocol"),
        (("--dataset", "records", "--root", "{records}", "--vis", "2"), "--vis N needs --out DIR"),
        (("--dataset", "prior", "--smooth", "savgol"), "--smooth needs sequences"),
        (("--dataset", "prior", "--samples", "0"), "--samples must be at least 1"),
        (("--dataset", "prior", "--input", "gt", "--keypoints", "x.json"), "is the 2D input of --input detected"),
        (("--dataset", "records", "--root", "x", "--camera", "told"), "records tell their own cameras"),
        (("--dataset", "prior", "--input", "detected", "--camera", "told"), "always know the size"),
        (("--dataset", "prior", "--seed", "-1"), "--seed must not be negative"),
        (("--dataset", "prior", "--split", "test"), "--split means nothing with --dataset prior"),
        (("--dataset", "prior", "--subjects", "3"), "--subjects means nothing with --dataset prior"),
        (("--dataset", "prior", "--protocol", "human36m-p2"), "is about recorded joints; --dataset prior has none"),
        (("--compare", "nowhere.json", "nowhere.json"), "cannot read nowhere.json"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    official: tuple[Path, Any], records: Records, tmp_path: Path, argv: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"tmp": tmp_path, "official": official[0], "records": records.path}
    assert run(*(word.format(**places) for word in argv)) == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.strip().splitlines()) == 1


# --- pictures


def test_the_worst_median_and_best_are_chosen_once_each() -> None:
    found = Scored(
        joint_names=(), track_names=["a#0", "b#0"], values={"mpvpe_mm": np.array([50.0, 10, 30, 20, 40])},
        tracks=np.array([0, 0, 1, 1, 1]), rows=np.array([7, 8, 3, 4, 5]),
    )  # fmt: skip
    chosen = {one.kind: (one.track, one.place, one.row, one.error) for one in choose(found, "mpvpe_mm", 1)}
    assert chosen == {"worst_0": (0, 0, 7, 50.0), "median_0": (1, 0, 3, 30.0), "best_0": (0, 1, 8, 10.0)}
    assert len(choose(found, "mpvpe_mm", 4)) == 5
    with pytest.raises(InputError, match="expected one of mpvpe_mm"):
        choose(found, "mpvpe", 1)


def test_what_is_told_of_the_camera_is_chosen_and_carded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def drawn(args, config, name, body, device):
        given.append((config.synthesis.camera.told, config.synthesis.camera.untold))
        raise InputError("enough")

    monkeypatch.setattr("tools.evaluation_sources.synthetic", drawn)
    for camera in ("assumed", "told", "untold"):
        assert run("--dataset", "prior", "--camera", camera, "--samples", "4", "--device", "cpu") == 2
    assert run("--dataset", "prior", "--samples", "4", "--device", "cpu") == 2
    assert given == [(0, 0), (1, 0), (0, 1), (0, 0)]
    monkeypatch.undo()
    words = ("--dataset", "prior", "--camera", "untold", "--samples", "4", "--device", "cpu", "--input", "gt")
    assert run(*words, "--out", tmp_path) == 0
    card = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert list(card["cameras known to the networks"].values()) == [1.0]
