"""One experiment: its YAML, and the objects built from it. Here `data` meets `gcn`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.draws import Draws, step_generator
from data.mixing import Mixture
from data.order import SampleOrder
from data.pose_augmentation import AugmentedPoses, PoseAugmentationConfig
from data.poses import read_poses
from data.record_batches import RecordBatches, RecordSampling
from data.records import open_records
from data.synthesis import BatchMaker, PoseSource, SynthesisConfig, Synthesiser
from gcn.checkpoint import CheckpointConfig
from gcn.pose2mesh import ModelConfig
from gcn.train_state import ArithmeticConfig, StageConfig
from mesh.body import Body, load_body
from mesh.errors import InputError, require
from mesh.rotation import quaternion_to_matrix
from mesh.skinning import BodyModel


@dataclass(frozen=True, kw_only=True)
class PosesConfig:
    """Where poses come from: the shipped prior, or a pose file split by subject."""

    source: Literal["prior", "file"] = "prior"
    file: str | None = None
    validation_subjects: tuple[int, ...] = ()
    max_level: int = 4  # of the pose file's nested covers, 0 the coarsest; 4: all
    augmentation: PoseAugmentationConfig = field(default_factory=PoseAugmentationConfig)  # of the training poses


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(RecordSampling):
    """Records (a folder made by tools/convert.py), how much they weigh in a mixture, and what of them is used."""

    records: str = MISSING
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, f"the weight of a dataset must be positive, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class ModelSection(ModelConfig):
    """The networks, and trained ones to start from: a weights file or a run folder."""

    posenet_weights: str | None = None  # mesh stage: the lifter to start from
    posenet_start: str | None = None  # lifter stage: a trained lifter to go on from; none: a fresh one
    pose2mesh_weights: str | None = None  # uncertainty stage: the mesh weights whose errors are learnt
    meshnet_weights: str | None = None  # mesh stage: a trained mesh network to go on from; none: a fresh one

    def networks(self) -> ModelConfig:
        """What the networks themselves depend on."""
        return ModelConfig(**{f.name: getattr(self, f.name) for f in fields(ModelConfig)})


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ArithmeticConfig):
    """How a training runs, whatever the stage."""

    resume_from: str | None = None  # a run folder or a checkpoint to go on from, as --resume PATH
    workers: int = 0  # processes that make batches ahead of time; 0: made in the training process
    plots: bool = True  # redrawn at each validation
    samples: int = 4  # people of the validation set whose meshes and pictures are written; 0: none
    weights: Literal["half", "int8"] = "half"  # of the weights file; int8: large layers in whole numbers

    def __post_init__(self) -> None:
        for name in ("workers", "samples"):
            require(getattr(self, name) >= 0, f"train.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything a run depends on."""

    seed: int = 0
    body: str | None = None  # an SMPL file; none: the free body
    poses: PosesConfig = field(default_factory=PosesConfig)
    datasets: list[DatasetConfig] = field(default_factory=list)  # records to train on; none: the poses above
    validation_dataset: DatasetConfig | None = None  # records to validate on; none: the poses above
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    model: ModelSection = field(default_factory=ModelSection)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    posenet_training: StageConfig = field(default_factory=StageConfig)
    meshnet_training: StageConfig = field(default_factory=StageConfig)
    labeling_training: StageConfig = field(default_factory=StageConfig)
    uncertainty_training: StageConfig = field(default_factory=StageConfig)
    validation_poses: int = 2048

    def __post_init__(self) -> None:
        require(self.validation_poses >= 1, f"validation_poses must be at least 1, got {self.validation_poses}")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2**31), got {self.seed}")


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML strictly, then apply `a.b=c` overrides; unknown keys and wrong types are refused by name."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no config file {path}; the shipped ones are in configs/")
    try:
        text = path.read_text()
    except (UnicodeDecodeError, OSError) as exc:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(exc).split())}") from exc
    return parse_experiment(text, str(path), overrides)


def parse_experiment(text: str, path: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The same from the YAML itself; `path` names it in errors."""
    try:
        schema = OmegaConf.structured(ExperimentConfig)
        _unlock(schema)
        loaded = OmegaConf.create(text)
        require(isinstance(loaded, DictConfig), f"{path}: expected sections and keys, got a list")
        merged = OmegaConf.merge(schema, loaded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except YAMLError as exc:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(exc).split())}") from exc
    except OmegaConfBaseException as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        where = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
        raise InputError(f"{path}: {where + ': ' if where else ''}{lines[0]}") from exc
    assert isinstance(config, ExperimentConfig)
    return config


def _unlock(node: DictConfig) -> None:
    """Frozen dataclasses arrive read-only; merging needs them open."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _unlock(child)


def dump_experiment(config: ExperimentConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def pose_source(config: PosesConfig, *, validation: bool) -> PoseSource:
    """Training or validation poses; a file is split by subject, never by frame. Only training poses are augmented."""
    source = _recorded_or_prior(config, validation=validation)
    if validation or not config.augmentation.changes:
        return source
    from data.prior import load_pose_prior

    return AugmentedPoses(source, load_pose_prior(), config.augmentation)


def _recorded_or_prior(config: PosesConfig, *, validation: bool) -> PoseSource:
    if config.source == "prior":
        from data.prior import load_pose_prior

        return load_pose_prior()
    if config.file is None:
        raise InputError("poses.source is 'file' but poses.file names none; add --set poses.file=PATH.npz")
    if validation and not config.validation_subjects:
        print("note: poses.validation_subjects is empty, so the training poses validate", file=sys.stderr)
    split: dict[str, Any] = {
        "subjects" if validation else "except_subjects": config.validation_subjects,
        "max_level": config.max_level,
    }
    return read_poses(config.file, **split)


def posed_bodies(source: PoseSource, body: Body, count: int, seed: int) -> np.ndarray:
    """Vertices of random bodies, the first in rest pose, (count, V, 3) metres: what the up-sampling is fitted to."""
    draws = Draws(count, step_generator(seed, 0))
    rotations = quaternion_to_matrix(source.poses(SampleOrder(len(source), seed).indices(0, count), draws))
    rotations[0] = torch.eye(3)
    model = BodyModel(body)
    shape = draws.randn(model.num_shape)
    shape[0] = 0
    return model(rotations, shape)[0].numpy()


def changes(before: str, after: str) -> list[str]:
    """What differs between two dumped configurations, one line for each value."""
    old, new = _flat(before), _flat(after)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]


def _flat(text: str) -> dict[str, Any]:
    """YAML to dotted keys and their values."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            k: v for key, child in node.items() for k, v in walk(child, f"{prefix}.{key}" if prefix else key).items()
        }

    return walk(yaml.safe_load(text), "")


def experiment_body(config: ExperimentConfig) -> Body:
    """The body a run is about."""
    return load_body(config.body)


def batch_maker(config: ExperimentConfig, body: Body, *, validation: bool, device: torch.device) -> BatchMaker:
    """Samples to train on, or to validate on: of records where the configuration names some, otherwise of poses."""
    chosen = config.datasets
    if validation:
        chosen = [] if config.validation_dataset is None else [config.validation_dataset]
    if not chosen:
        return Synthesiser(pose_source(config.poses, validation=validation), body, config.synthesis, device=device)
    makers = [RecordBatches(open_records(d.records), body, config.synthesis, d, device=device) for d in chosen]
    return makers[0] if len(makers) == 1 else Mixture(makers, [d.weight for d in chosen])
