"""One experiment: its YAML, and the objects built from it. Here `data` meets `gcn`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.poses import read_poses
from data.synthesis import PoseSource, SynthesisConfig, Synthesiser
from gcn.pose2mesh import ModelConfig
from gcn.trainer import StageConfig
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


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything a run depends on."""

    seed: int = 0
    body: str | None = None  # an SMPL file; none: the free body
    posenet_weights: str | None = None  # mesh stage: the lifter to start from
    meshnet_weights: str | None = None  # mesh stage: a trained mesh network to go on from; none: a fresh one
    poses: PosesConfig = field(default_factory=PosesConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    posenet_training: StageConfig = field(default_factory=StageConfig)
    meshnet_training: StageConfig = field(default_factory=StageConfig)
    labeling_training: StageConfig = field(default_factory=StageConfig)
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
        schema = OmegaConf.structured(ExperimentConfig)
        _unlock(schema)
        loaded = OmegaConf.load(path)
        require(isinstance(loaded, DictConfig), f"{path}: expected sections and keys, got a list")
        merged = OmegaConf.merge(schema, loaded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except (YAMLError, UnicodeDecodeError) as exc:
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
    """Training or validation poses; a file is split by subject, never by frame."""
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


def posed_bodies(source: PoseSource, body: Body, count: int, generator: torch.Generator) -> np.ndarray:
    """Vertices of random bodies, the first in rest pose, (count, V, 3) metres: what the up-sampling is fitted to."""
    rotations = quaternion_to_matrix(source.sample(count, generator))
    rotations[0] = torch.eye(3)
    model = BodyModel(body)
    shape = torch.randn(count, model.num_shape, generator=generator)
    shape[0] = 0
    return model(rotations, shape)[0].numpy()


def _flat(text: str) -> dict[str, Any]:
    """YAML to dotted keys and their values."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            k: v for key, child in node.items() for k, v in walk(child, f"{prefix}.{key}" if prefix else key).items()
        }

    return walk(yaml.safe_load(text), "")


class RunFolder:
    """`runs/<name>/`: config, checkpoints, metrics. Made once; an existing one is only ever resumed."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.checkpoint = path, path / "checkpoints" / "last.pt"
        if path.exists() and not resume:
            raise InputError(f"run folder {path} exists; continue it with --resume or choose another --name")
        if resume and not self.checkpoint.is_file():
            raise InputError(f"nothing to resume: {self.checkpoint} does not exist")

    def open(self, config: ExperimentConfig) -> None:
        """Make the folder and write the config, after everything that could be refused; say what a resume changes."""
        text = dump_experiment(config)
        try:
            if (self.path / "config.yaml").is_file():
                before, after = _flat((self.path / "config.yaml").read_text()), _flat(text)
                for key in sorted(before.keys() | after.keys()):
                    if before.get(key) != after.get(key):
                        print(f"note: resumed with {key}: {before.get(key)} -> {after.get(key)}", file=sys.stderr)
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(text)
        except OSError as exc:
            raise InputError(f"cannot write the run folder {self.path}: {exc.strerror}") from exc

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """One line for people, one JSON line for programs."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        print(f"step {step:7d}  " + "  ".join(f"{k} {v:.4g}" for k, v in scalars.items()), flush=True)


def experiment_body(config: ExperimentConfig) -> Body:
    """The body a run is about."""
    return load_body(config.body)


def synthesiser(config: ExperimentConfig, body: Body, *, validation: bool, device: torch.device) -> Synthesiser:
    """Samples of the training or the validation poses."""
    return Synthesiser(pose_source(config.poses, validation=validation), body, config.synthesis, device=device)
