from __future__ import annotations

import csv
import io
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.loading import TrainingBatches
from gcn.distributed import World
from gcn.pose2mesh import save_weights
from gcn.train_state import make_state
from gcn.trainer import Step
from mesh.body import load_body
from mesh.errors import InputError
from tools import ablate, ablation_rehearsal, ablation_runs, command
from tools.ablation_config import selected
from tools.ablation_file import load_ablation, parse_budget
from tools.ablation_plot import draw_curves
from tools.ablation_rehearsal import step_seconds
from tools.ablation_runs import Folder, Trainings
from tools.ablation_scores import Result, Training, _training
from tools.ablation_table import csv_text, markdown
from tools.experiment import dump_experiment, load_experiment
from tools.run_folder import RunFolder
from tools.signals import StopSignals
from tools.stages import STAGES, Setting

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SHIPPED = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
TWO = """
base: {base}
set: {{validation_poses: 8, model.posenet.width: 16, posenet_training.batch_size: 8}}
budget: {{samples: 480}}
rows:
  a:
  b: {{model.posenet.blocks: 1}}
"""


def ablation(tmp_path: Path, text: str = TWO, **options: Any):
    file = tmp_path / "try.yaml"
    file.write_text(text.format(base=QUICKSTART))
    return load_ablation(file, **options)


def test_there_are_ready_made_files() -> None:
    expected = {"cyclic", "evolution", "lifters", "optimiser", "posenet_width", "semgcn", "semgcn_grouping"}
    assert {path.stem for path in SHIPPED} == expected


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_ready_made_row_fits_the_experiments(path: Path) -> None:
    found = load_ablation(path)
    configs = {run.row.label: found.config(run, Path("runs")) for run in found.runs()}
    assert len(configs) == len(found.rows) >= 4
    assert all(config.posenet_training.epochs is None for config in configs.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "evolution"], ids=lambda path: path.stem)
def test_every_ready_made_row_can_be_trained(path: Path, tmp_path: Path) -> None:
    small = ["validation_poses=2", "posenet_training.batch_size=2", "posenet_training.optim.warmup=0"]
    found = load_ablation(path, small, budget="samples=4")
    for run in found.runs():
        config = found.config(run, tmp_path)
        setting = Setting(config=config, body=load_body(), world=World(), saved=None, stops=lambda: False)
        stage = STAGES["posenet"](setting)
        state = make_state(stage.model, stage.config)
        step = Step(config=stage.config, objective=stage.objective, forward=stage.model, epoch_samples=65536)
        step(state, TrainingBatches(stage.training, seed=0, batch_size=2)[0])
        (tmp_path / run.name).mkdir()
        save_weights(tmp_path / run.name / "weights.safetensors", stage.model, stage.networks, {})


def test_rows_of_different_batch_sizes_see_equally_many_samples(tmp_path: Path) -> None:
    text = (
        TWO
        + "  c: {{posenet_training.batch_size: 32}}\n  d: [posenet_training.batch_size=16, 'model.posenet.blocks=1']"
    )
    found = ablation(tmp_path, text)
    stages = [found.config(run, tmp_path).posenet_training for run in found.runs()]
    assert [(s.batch_size, s.steps) for s in stages] == [(8, 60), (8, 60), (32, 15), (16, 30)]


def test_warm_up_and_milestones_keep_their_places_in_the_length(tmp_path: Path) -> None:
    counted = (
        "  c: [posenet_training.steps=600, 'posenet_training.optim={{schedule: step, milestones: [300], warmup: 100}}']"
    )
    epochs = counted.replace("steps=600", "steps=null").replace("300", "2").replace("100", "1") + "\n"
    found = ablation(tmp_path, TWO + counted + "\n" + epochs.replace("  c: [", "  d: [posenet_training.epochs=4, "))
    for run in found.runs()[2:]:
        stage = found.config(run, tmp_path).posenet_training
        assert (stage.steps, stage.optim.milestones) == (60, (30.0,))
        assert stage.optim.warmup == (10 if run.name == "c" else 15)
        assert stage.validate_every == 6


def test_the_common_changes_come_before_those_of_a_row(tmp_path: Path) -> None:
    text = TWO + "  c: {{model.posenet.width: 64}}\n"
    found = ablation(tmp_path, text, overrides=["model.posenet.width=32"])
    widths = [found.config(run, tmp_path).model.posenet.width for run in found.runs()]
    assert widths == [32, 32, 64]


def test_seeds_and_starts_name_the_runs(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO + "  after, all: {{model.posenet_start: {{row: b}}, share: 0.5}}\nseeds: [3, 5]\n")
    runs = {run.name: found.config(run, tmp_path) for run in found.runs()}
    assert list(runs) == ["a", "b", "after_all", "a-seed5", "b-seed5", "after_all-seed5"]
    assert runs["after_all-seed5"].model.posenet_start == str(tmp_path / "b-seed5")
    assert runs["after_all-seed5"].seed == 5 and runs["after_all"].posenet_training.steps == 30
    assert found.common_config().seed == 3


def test_only_takes_what_a_row_starts_from(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO + "  c: {{model.posenet_start: {{row: b}}}}\n")
    assert [row.label for row in selected(found, ["c"]).rows] == ["b", "c"]
    with pytest.raises(InputError, match="--only d: no such row"):
        selected(found, ["d"])


def test_a_row_follows_those_it_starts_from(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO.replace("  a:", "  a: {{model.posenet_start: {{row: b}}}}"))
    assert [run.name for run in found.runs()] == ["b", "a"] and [row.label for row in found.rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("budget:", "bugdet:", "unknown key 'bugdet'; expected base, stage"),
        ("samples: 480", "samples: 480, minutes: 1", "either samples: N or minutes: M"),
        ("samples: 480", "samples: many", "samples must be a whole number, as 1000000, got 'many'"),
        ("samples: 480", "samples: 7", "row a: a budget of 7 samples is less than one batch of 8"),
        ("samples: 480", "minutes: -1", "must be positive and finite, got -1"),
        ("model.posenet.blocks", "model.posenet.bloks", "row b: .*model.posenet.bloks.*not in"),
        ("  a:", "  a: {{seed: 3}}", "row a: seed is set for every row by the key 'seeds'"),
        ("  a:", "  a: {{posenet_training.validate_every: 3}}", "by the key 'validations'"),
        ("  a:", "  a: {{posenet_training: {{validate_every: 3}}}}", "by the key 'validations'"),
        ("  a:", "  a: ['[seed]=3']", "row a: seed is set for every row by the key 'seeds'"),
        ("  a:", "  a: {{train.resume_from: x}}", "the same command again resumes"),
        ("  a:", "  a: {{train: {{resume_from: x}}}}", "the same command again resumes"),
        ("  a:", '  "a\\nb":', "a label must be one line of text"),
        ("  a:", "  '/':", "a label needs a letter or a digit"),
        ("  a:", f"  {'x' * 300}:", "the label is too long"),
        ("rows:", "seeds: [0, 1]\nrows:\n  a-seed1:", "'a' with seed 1 gets the folder name 'a-seed1', as 'a-seed1'"),
        ("  a:", "  a: {{share: true}}", r"share: expected a part of the budget in \(0, 1\], got True"),
        ("  a:", "  a: {{model.posenet_start: {{row: c}}}}", "row a: model.posenet_start names row 'c'"),
        ("  a:", "  a: {{model.posenet_start: {{row: a}}}}", "names row 'a', which is not another row"),
        ("  a:", "  a: [oops]", "row a: expected a list of KEY=VALUE"),
        ("  a:", "  a: 3", "row a: expected keys and values, got int 3"),
        ("  a:", "  a: {{share: 2}}", r"share: expected a part of the budget in \(0, 1\]"),
        ("  a:", "  b:", "found duplicate key b"),
        ("  a:", "  'b!':", "gets the folder name 'b'"),
        ("  a:", "  B:", "row 'b' gets the folder name 'b', as 'B' does"),
        ("rows:", "stage: labeling\nrows:", "stage: expected posenet or meshnet, got 'labeling'"),
        ("rows:", "seeds: [1, 1]\nrows:", "seeds: expected different whole numbers"),
        ("rows:", "validations: 0\nrows:", "validations: expected a whole number of at least 1"),
        ("rows:", "rowz:", "unknown key 'rowz'"),
        ("{base}", "nowhere.yaml", "no config file .*nowhere.yaml"),
        ("set: {{", "set: {{share: 0.5, ", "set: .* belong to a row"),
        ("set:", "set: [", "is not readable YAML"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path: Path, capsys, before, after, message) -> None:
    assert before in TWO
    (tmp_path / "try.yaml").write_text(TWO.replace(before, after).format(base=QUICKSTART))
    assert command.run(ablate.main, [str(tmp_path / "try.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=message):
        raise InputError(said[0])


def test_rows_that_start_from_each_other_are_refused(tmp_path: Path) -> None:
    text = TWO.replace("  a:", "  a: {{model.posenet_start: {{row: b}}}}").replace(
        "{{model.posenet.blocks: 1}}", "{{model.posenet_start: {{row: a}}}}"
    )
    with pytest.raises(InputError, match="rows a, b start from each other"):
        ablation(tmp_path, text)


@pytest.mark.parametrize("text", ["480", "samples=", "samples=-1", "minutes=nan", "hours=1", "samples=1e999"])
def test_a_wrong_budget_on_the_command_line_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_budget(text)


class FakeTrainings:
    """Stands for subprocess.Popen: `codes` by run; what ends with 0 leaves weights; the others leave nothing."""

    def __init__(self, runs: Path, codes: dict[str, int]) -> None:
        self.runs, self.codes, self.calls, self.at_once, self.most = runs, codes, [], 0, 0

    def __call__(self, words: list[str], *, stdout: Any, **_: Any) -> FakeTrainings._Process:
        name = words[words.index("--name") + 1]
        self.calls.append((name, "--resume" in words))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        stdout.write(b"error: it broke\n")
        stdout.flush()
        return self._Process(self, name)

    class _Process:
        def __init__(self, owner: FakeTrainings, name: str) -> None:
            self.owner, self.name, self.polls = owner, name, 0

        def poll(self) -> int | None:
            self.polls += 1
            if self.polls < 3:
                return None
            self.owner.at_once -= 1
            code = self.owner.codes.get(self.name, 0)
            if code == 0:
                folder = self.owner.runs / self.name
                folder.mkdir(exist_ok=True)
                (folder / "weights.safetensors").touch()
            return code


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> FakeTrainings:
    trainings = FakeTrainings(tmp_path / "out" / "runs", {})
    monkeypatch.setattr(ablation_runs.subprocess, "Popen", trainings)
    monkeypatch.setattr(ablation_runs, "_POLL_S", 0.0)
    return trainings


def train(found, tmp_path: Path, jobs: int = 1) -> Trainings:
    folder = Folder(tmp_path / "out")
    folder.make()
    trainings = Trainings(found, folder, jobs, torch.device("cpu"))
    trainings.check(found.runs())
    with StopSignals() as signals:
        trainings.train(found.runs(), signals)
    return trainings


def test_so_many_rows_as_jobs_are_trained_at_a_time(tmp_path: Path, fake: FakeTrainings) -> None:
    train(ablation(tmp_path, TWO + "  c:\n  d:\n"), tmp_path, jobs=3)
    assert fake.most == 3 and [name for name, _ in fake.calls] == ["a", "b", "c", "d"]


def test_what_is_finished_is_not_trained_again_and_what_failed_is(tmp_path: Path, fake: FakeTrainings) -> None:
    fake.codes["b"] = 2
    found = ablation(tmp_path, TWO + "  c: {{model.posenet_start: {{row: b}}}}\n  d:\n")
    trainings = train(found, tmp_path)
    assert trainings.failures == {"b": "exit code 2: error: it broke", "c": "it starts from b, which failed"}
    assert [name for name, _ in fake.calls] == ["a", "b", "d"]
    fake.calls.clear()
    fake.codes.clear()
    (fake.runs / "b").mkdir()  # begun, not finished
    assert train(found, tmp_path).failures == {}
    assert fake.calls == [("b", True), ("c", False)]
    fake.calls.clear()
    train(found, tmp_path)
    assert fake.calls == []


def begun(found, tmp_path: Path, name: str, **options: Any) -> None:
    """A run folder as a training has left it."""
    runs = tmp_path / "out" / "runs"
    run = next(run for run in found.runs() if run.name == name)
    (runs / name).mkdir(parents=True)
    (runs / name / "config.yaml").write_text(dump_experiment(found.config(run, runs, **options)))


def test_a_changed_row_is_refused_with_what_differs_and_an_added_one_is_not(tmp_path: Path, fake) -> None:
    begun(ablation(tmp_path), tmp_path, "b")
    train(ablation(tmp_path, TWO + "  c:\n"), tmp_path)
    with pytest.raises(InputError, match=r"row b was begun otherwise: model\.posenet\.blocks: 1 -> 2; choose") as said:
        train(ablation(tmp_path, TWO.replace("blocks: 1", "blocks: 2")), tmp_path)
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match=r"posenet_training\.steps: 60 -> 30"):
        train(ablation(tmp_path, budget="samples=240"), tmp_path)


def test_a_row_that_began_from_weights_that_are_gone_is_refused(tmp_path: Path, fake) -> None:
    found = ablation(tmp_path, TWO + "  c: {{model.posenet_start: {{row: b}}}}\n")
    begun(found, tmp_path, "c")
    with pytest.raises(InputError, match="row c began from the run b, which is not there any more"):
        train(found, tmp_path)


@pytest.mark.parametrize("where", ["set", "row"])
def test_a_pose_file_that_is_not_there_is_named_before_anything_trains(tmp_path: Path, fake, where: str) -> None:
    missing = "poses.source: file, poses.file: nowhere.npz"
    row = f"  c: {{{{{missing}}}}}\n"
    text = TWO + row if where == "row" else TWO.replace("set: {{", f"set: {{{{{missing}, ")
    (tmp_path / "try.yaml").write_text(text.format(base=QUICKSTART))
    call = [str(tmp_path / "try.yaml"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=f"{'row c' if where == 'row' else 'what judges all rows'}: .*nowhere.npz"):
        ablate.main(call)
    assert fake.calls == []
    if where == "row":  # which is no concern of the others
        assert train(selected(ablation(tmp_path, text), ["a"]), tmp_path).failures == {}


def test_minutes_become_steps_once(tmp_path: Path, fake: FakeTrainings, monkeypatch) -> None:
    measured = []

    def step_seconds(config, stage, device):
        measured.append(config.model.posenet.blocks)
        return 0.06 * len(measured)

    monkeypatch.setattr(ablation_rehearsal, "step_seconds", step_seconds)
    fake.codes["b"] = 1
    found = ablation(tmp_path, budget="minutes=0.1")
    train(found, tmp_path)
    steps = [load_experiment(tmp_path / "out" / "configs" / f"{n}.yaml").posenet_training.steps for n in "ab"]
    assert steps == [100, 50]
    begun(found, tmp_path, "b", steps=50)
    train(found, tmp_path)
    assert measured == [2, 1] and fake.calls[-1] == ("b", True)
    with pytest.raises(InputError, match=r"row b was begun with 0\.1 minutes, now it is 0\.2"):
        train(ablation(tmp_path, budget="minutes=0.2"), tmp_path)


def test_a_rehearsal_measures_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation_rehearsal, "_ENOUGH_S", 0.0)
    found = ablation(tmp_path)
    assert step_seconds(found.config(found.runs()[0], tmp_path), "posenet", torch.device("cpu")) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["try.yaml"]


def test_a_stop_signal_reaches_each_child_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ablation_runs, "_POLL_S", 0.0)
    sent: list[tuple[str, int]] = []

    class Patient:
        def __init__(self, words: list[str], **_: Any) -> None:
            self.name = words[words.index("--name") + 1]

        def poll(self) -> int | None:
            if self.name == "b" and not sent:
                signal.raise_signal(signal.SIGINT)
            return 130 if self.name in dict(sent) else None

        def send_signal(self, number: int) -> None:
            sent.append((self.name, number))

        def wait(self) -> int:
            assert self.name in dict(sent)
            return 130

    monkeypatch.setattr(ablation_runs.subprocess, "Popen", Patient)
    trainings = train(ablation(tmp_path), tmp_path, jobs=2)
    assert sent == [("a", signal.SIGINT), ("b", signal.SIGINT)] and trainings.failures == {}


def result(run, errors: dict[str, list[float]], minutes: float = 1.0) -> Result:
    training = Training(
        steps=60, best_step=48, samples_seen=480, minutes=minutes, samples=np.array([240, 480]),
        scores={name: np.array([2.0, 1.0]) * np.mean(values) for name, values in errors.items()},
    )  # fmt: skip
    return Result(
        run=run, errors={name: np.array(v) for name, v in errors.items()}, parameters=1234,
        us_per_pose={1: 100.0, 256: 2.0}, training=training,
    )  # fmt: skip


def errors(mm: float) -> dict[str, list[float]]:
    names = [f"{kind}/{metric}" for kind in ("exact", "noisy") for metric in ("lift_mpjpe_mm", "lift_pa_mpjpe_mm")]
    return {name: [mm + 10 * k, mm + 10 * k + 2] for k, name in enumerate(names)}


def test_the_table_has_means_their_errors_and_the_change_sample_by_sample(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO + "  c:\n")
    a, b, _ = found.runs()
    results = [result(a, errors(50)), result(b, errors(47))]
    text = markdown(found, results, {"commit": "f00"}, {"c": "failed: disk"})
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:-1]]
        for line in text.splitlines()
        if (cells := line.split("|"))[1:]
    }
    assert rows["a"][:5] == ["51.00 ± 1.00", "61.00 ± 1.00", "71.00 ± 1.00", "81.00 ± 1.00", ""]
    assert rows["b"][:5] == ["48.00 ± 1.00", "58.00 ± 1.00", "68.00 ± 1.00", "78.00 ± 1.00", "-3.00 ± 0.00"]
    assert rows["b"][5:] == ["1,234", "100.0", "2.0", "480", "1.0"] and set(rows["c"]) == {"-"}
    assert "* commit: f00" in text and "* c: failed: disk" in text
    read = list(csv.DictReader(io.StringIO(csv_text(found, results))))
    assert [row["row"] for row in read] == ["a", "b"] and float(read[1]["exact/lift_mpjpe_mm"]) == 48
    assert float(read[1]["noisy/lift_mpjpe_mm against first row"]) == -3 and read[0]["best_step"] == "48"


def test_several_seeds_are_shown_by_their_mean_and_spread(tmp_path: Path) -> None:
    found = ablation(tmp_path, seeds=[0, 1])
    values = {("a", 0): 50, ("a", 1): 52, ("b", 0): 40, ("b", 1): 46}
    results = [result(run, errors(values[run.row.label, run.seed])) for run in found.runs()]
    text = markdown(found, results, {}, {})
    row = next(line for line in text.splitlines() if line.startswith("| b"))
    assert row.split("|")[2].strip() == "44.00 ± 4.24" and "-8.00 ± 2.83" in row
    assert "2 seeds" in text and csv_text(found, results).count("\n") == 5


def test_curves_of_many_rows_are_drawn_for_both_kinds(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO + "".join(f"  row number {k}:\n" for k in range(9)), seeds=[0, 1])
    results = [result(run, errors(50 + k)) for k, run in enumerate(found.runs())]
    before = set(sys.modules)
    draw_curves(found, results, tmp_path / "plot.png")
    from PIL import Image

    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**24)) > 100
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_a_label_like_an_option_gets_the_name_of_a_folder(tmp_path: Path) -> None:
    found = ablation(tmp_path, TWO + "  --resume:\n  -x/y:\n")
    assert [run.name for run in found.runs()] == ["a", "b", "resume", "x_y"]


def test_a_row_whose_folder_was_deleted_is_not_finished_until_it_ends_again(tmp_path: Path, fake) -> None:
    found = ablation(tmp_path)
    train(found, tmp_path)
    shutil.rmtree(fake.runs / "b")
    fake.codes["b"] = 130
    assert set(train(found, tmp_path).failures) == {"b"}
    (fake.runs / "b").mkdir()
    (fake.runs / "b" / "weights.safetensors").touch()  # of its first validation
    fake.codes.clear()
    fake.calls.clear()
    train(found, tmp_path)
    assert fake.calls == [("b", True)]


@pytest.mark.parametrize("text", ["[]", '{"finished": [], "steps": []}', '{"finished": [], "steps": {"a": ["x", 1]}}'])
def test_an_unreadable_ledger_is_refused(tmp_path: Path, fake, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ablation.json").write_text(text)
    with pytest.raises(InputError, match=r"ablation\.json is not readable"):
        train(ablation(tmp_path), tmp_path)


def test_a_damaged_configuration_of_a_row_is_refused(tmp_path: Path, fake) -> None:
    begun(ablation(tmp_path), tmp_path, "b")
    (tmp_path / "out" / "runs" / "b" / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b/config\.yaml is not readable"):
        train(ablation(tmp_path), tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_a_run_without_validations_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="holds no validation; delete"):
        _training(RunFolder(tmp_path), 8, [])


def test_labels_are_drawn_as_they_are(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    legends = []
    legend = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *a, **k: legends.append(made := legend(*a, **k)) or made)
    found = ablation(tmp_path, TWO + "  _$\\alpha_{{$ of 5:\n")
    results = [result(run, errors(50 + k)) for k, run in enumerate(found.runs())]
    draw_curves(found, results, tmp_path / "plot.png")
    assert [text.get_text().strip() for text in legends[0].get_texts()] == ["a", "b", "_$\\alpha_{$ of 5"]
