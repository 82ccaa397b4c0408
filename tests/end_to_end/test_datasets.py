"""From official files to records, to a mixture that trains, to a validation, by the real command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.records import open_records
from tests.data.miniatures import coco, human36m, pw3d
from tests.end_to_end.test_training import TINY, state_of
from tools import command, convert, train_meshnet, train_posenet

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of three datasets in their official forms, converted."""
    root = tmp_path_factory.mktemp("datasets")
    for name in ("pw3d", "human36m", "coco"):
        (root / name).mkdir()
    pw3d.write_official(root / "pw3d")
    human36m.write(root / "human36m")
    coco.write_coco(root / "coco")
    for name, split, extra in (
        ("pw3d", "validation", ()),
        ("human36m", "test", ("--max-fit-mm", "inf")),
        ("coco", "train", ("--max-fit-px", "inf")),
    ):
        argv = [name, "--root", str(root / name), "--out", str(root / "records" / name), "--split", split, *extra]
        assert command.run(convert.main, argv) == 0
    return root / "records"


def arguments(records: Path, runs: Path, name: str, *extra: str) -> list[str]:
    sets = [f"{{records: {records}/{name}, weight: {w}}}" for name, w in (("human36m", 2), ("coco", 1))]
    chosen = [
        f"datasets=[{', '.join(sets)}]",
        f"validation_dataset={{records: {records}/pw3d, input: recorded}}",
        "synthesis.noise={model: coco, clean: 0}",
        *extra,
    ]
    return ["--config", str(QUICKSTART), "--runs", str(runs), "--name", name, "--set", *TINY, *chosen]


def test_a_mixture_trains_both_networks_and_validates_on_3dpw(records: Path, tmp_path: Path) -> None:
    assert command.run(train_posenet.main, arguments(records, tmp_path, "lifter")) == 0
    lifter = f"model.posenet_weights={tmp_path}/lifter"
    assert command.run(train_meshnet.main, arguments(records, tmp_path, "mesh", lifter)) == 0
    for name, metric in (("lifter", "lift_mpjpe_mm"), ("mesh", "mpvpe_mm")):
        history = state_of(tmp_path / name)["history"]
        assert history.keys() == {3, 6}
        assert {f"exact/{metric}", f"detected/{metric}"} <= history[6].keys()
        assert all(0 < value < 5000 for value in history[6].values())


def test_an_epoch_of_a_mixture_follows_its_weights(records: Path, tmp_path: Path) -> None:
    assert command.run(train_posenet.main, arguments(records, tmp_path, "lifter", "posenet_training.log_every=1")) == 0
    rows = [json.loads(line) for line in (tmp_path / "lifter" / "metrics.jsonl").read_text().splitlines()]
    sizes = [int(open_records(records / name)["mesh_valid"].sum()) for name in ("human36m", "coco")]
    length = max(sizes[0] * 3 / 2, sizes[1] * 3)
    assert rows[0]["epoch"] == pytest.approx(8 / length, rel=0.02)


def test_records_that_are_not_there_are_one_line(records: Path, tmp_path: Path, capsys) -> None:
    argv = arguments(records / "elsewhere", tmp_path, "x")
    assert command.run(train_posenet.main, argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "elsewhere" in said[0] and list(tmp_path.iterdir()) == []
