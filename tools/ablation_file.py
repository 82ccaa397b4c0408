"""Reading an ablation's YAML strictly: what cannot be meant is refused in one line, before anything trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mesh.errors import InputError, require
from tools.ablation_config import STAGES, Ablation, Budget, Row, Run, folder_name

_ABSENT = object()
_LONGEST_NAME = 200  # bytes; file systems end at 255, and seeds and endings follow
_KEYS = ("base", "stage", "set", "budget", "rows", "seeds", "validations")


def load_ablation(
    path: Path, overrides: Sequence[str] = (), budget: str | None = None, seeds: Sequence[int] | None = None
) -> Ablation:
    """Read the YAML strictly. `overrides` follow its own `set`, `budget` ("samples=N") and `seeds` replace its own."""
    node = _read(path)
    _known(node, _KEYS, f"{path}")
    for key in ("base", "rows"):
        if not node.get(key):
            raise InputError(f"{path}: {key} is missing; see docs/ablations.md")
    stage = node.get("stage", "posenet")
    require(stage in STAGES, f"{path}: stage: expected {' or '.join(STAGES)}, got {stage!r}")
    rows = _mapping(node["rows"], f"{path}: rows")
    common, starts, share = _changes(node.get("set"), f"{path}: set", stage)
    if starts or share is not None:
        raise InputError(f"{path}: set: {{row: NAME}} and share belong to a row")
    for override in overrides:
        require("=" in override, f"--set {override}: expected KEY=VALUE")
    _check_free(overrides, stage, "--set")
    try:
        ablation = Ablation(
            path=path, base=path.parent / str(node["base"]), stage=stage, common=(*common, *overrides),
            budget=_budget(node.get("budget"), path) if budget is None else parse_budget(budget),
            rows=tuple(_row(str(label), change, path, stage) for label, change in rows.items()),
            seeds=_seeds(node.get("seeds", [0]) if seeds is None else list(seeds), path),
            validations=_count(node.get("validations", 10), f"{path}: validations"),
        )  # fmt: skip
    except InputError as exc:
        raise exc if str(path) in str(exc) else InputError(f"{path}: {exc}") from exc
    _check_rows(ablation)
    return ablation


def parse_budget(text: str) -> Budget:
    """`samples=N` or `minutes=M`."""
    name, _, value = text.partition("=")
    try:
        if name == "samples":
            return Budget(samples=int(float(value)))
        if name == "minutes":
            return Budget(minutes=float(value))
    except (ValueError, OverflowError):
        pass
    raise InputError(f"--budget {text}: expected samples=N or minutes=M")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no ablation file {path}; the shipped ones are in configs/ablations/")
    try:
        node = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as exc:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(exc).split())}") from exc
    return _mapping(node, str(path))


def _mapping(node: Any, where: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        raise InputError(f"{where}: expected keys and values, got {type(node).__name__} {node!r}")
    return {str(key): value for key, value in node.items()}


def _known(node: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = [key for key in node if key not in known]
    if unknown:
        raise InputError(f"{where}: unknown key {', '.join(map(repr, unknown))}; expected {', '.join(known)}")


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: expected a whole number of at least 1, got {value!r}")
    return value


def _budget(node: Any, path: Path) -> Budget:
    if node is None:
        raise InputError(f"{path}: budget is missing: samples: N or minutes: M")
    given = _mapping(node, f"{path}: budget")
    _known(given, ("samples", "minutes"), f"{path}: budget")
    for name, value in given.items():
        kinds = (int,) if name == "samples" else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            kind = "a whole number, as 1000000" if name == "samples" else "a number"
            raise InputError(f"{path}: budget: {name} must be {kind}, got {value!r}")
    return Budget(**given)


def _seeds(node: Any, path: Path) -> tuple[int, ...]:
    good = isinstance(node, list) and node and all(isinstance(s, int) and not isinstance(s, bool) for s in node)
    if not good or len(set(node)) != len(node) or min(node) < 0:
        raise InputError(f"{path}: seeds: expected different whole numbers from 0, as [0, 1], got {node!r}")
    return tuple(node)


def _row(label: str, node: Any, path: Path, stage: str) -> Row:
    overrides, starts, share = _changes(node, f"{path}, row {label}", stage)
    return Row(label=label, overrides=overrides, starts=starts, share=1.0 if share is None else share)


def _changes(node: Any, where: str, stage: str) -> tuple[tuple[str, ...], dict[str, str], float | None]:
    """Overrides as on the command line, those that name another row's weights, and the share of the budget."""
    if node is None:
        return (), {}, None
    if isinstance(node, list):
        wrong = [item for item in node if not isinstance(item, str) or "=" not in item]
        if wrong:
            raise InputError(f"{where}: expected a list of KEY=VALUE or keys and values, got {wrong[0]!r}")
        _check_free(node, stage, where)
        return tuple(node), {}, None
    overrides, starts, share = [], {}, None
    for key, value in (_mapping(node, where) if node != {} else {}).items():
        if key == "share":
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
                raise InputError(f"{where}: share: expected a part of the budget in (0, 1], got {value!r}")
            share = float(value)
        elif isinstance(value, dict) and list(value) == ["row"]:
            starts[key] = str(value["row"])
        else:
            overrides.append(f"{key}={json.dumps(value)}")
    _check_free([*overrides, *(f"{key}=" for key in starts)], stage, where)
    return tuple(overrides), starts, share


def _check_free(overrides: Sequence[str], stage: str, where: str) -> None:
    """Refuse what the budget and the seeds decide, in whatever way it is written."""
    instead = {"seed": "seeds", f"{stage}_training.validate_every": "validations"}
    for override in overrides:
        try:
            changed = OmegaConf.from_dotlist([override])
        except (YAMLError, OmegaConfBaseException, ValueError):
            continue  # refused by the experiment, with the reason
        for key, kept_by in instead.items():
            if OmegaConf.select(changed, key, default=_ABSENT) is not _ABSENT:
                raise InputError(f"{where}: {key} is set for every row by the key {kept_by!r} of the ablation")
        if OmegaConf.select(changed, "train.resume_from", default=_ABSENT) is not _ABSENT:
            raise InputError(f"{where}: train.resume_from means nothing here: the same command again resumes all rows")


def _check_rows(ablation: Ablation) -> None:
    """Labels that can be told apart and rows that exist; every override fits the experiment."""
    names: dict[str, str] = {}
    for row in ablation.rows:
        name = folder_name(row.label)
        where = f"{ablation.path}: row {row.label!r}"
        require(row.label.isprintable(), f"{where}: a label must be one line of text")
        require(bool(name), f"{where}: a label needs a letter or a digit, for the name of its folder")
        require(len(name.encode()) <= _LONGEST_NAME, f"{where}: the label is too long for the name of a folder")
        same = names.setdefault(name.casefold(), row.label)  # some file systems know no capitals
        require(same == row.label, f"{where} gets the folder name {name!r}, as {same!r} does")
    labels = set(names.values())
    for row in ablation.rows:
        for key, label in row.starts.items():
            if label not in labels or label == row.label:
                raise InputError(
                    f"{ablation.path}, row {row.label}: {key} names row {label!r}, which is not another row"
                )
    runs: dict[str, Run] = {}
    for run in ablation.runs():
        other = runs.setdefault(run.name, run)
        if other is not run:
            raise InputError(
                f"{ablation.path}: row {run.row.label!r} with seed {run.seed} gets the folder name {run.name!r}, as "
                f"{other.row.label!r} with seed {other.seed} does"
            )
    for run in ablation.runs()[: len(ablation.rows)]:
        ablation.config(run, Path("runs"))
