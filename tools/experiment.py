"""One experiment: its YAML, and the objects built from it. Here `data` meets `gcn`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.poses import read_poses
from data.synthesis import PoseSource, SynthesisConfig, Synthesiser
from gcn.pose2mesh import ModelConfig
from gcn.trainer import StageConfig
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.rotation import quaternion_to_matrix
from mesh.skinning import BodyModel


@dataclass(frozen=True, kw_only=True)
class PosesConfig:
    """Where poses come from: the shipped prior, or a pose file split by subject."""

    source: Literal["prior", "file"] = "prior"
    file: str | None = None
    validation_subjects: tuple[int, ...] = ()
    max_level: int = 2


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


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML strictly, then apply `a.b=c` overrides; unknown keys and wrong types are refused by name."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no config file {path}; the shipped ones are in configs/")
    try:
        schema = OmegaConf.structured(ExperimentConfig)
        _unlock(schema)
        merged = OmegaConf.merge(schema, OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as exc:
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


class RunFolder:
    """`runs/<name>/`: config, checkpoints, metrics. Made once, never overwritten."""

    def __init__(self, path: Path, config: ExperimentConfig, *, resume: bool) -> None:
        self.path, self.checkpoint = path, path / "checkpoints" / "last.pt"
        if path.exists() and not resume:
            raise InputError(f"run folder {path} exists; continue it with --resume or choose another --name")
        if resume and not self.checkpoint.is_file():
            raise InputError(f"nothing to resume: {self.checkpoint} does not exist")
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(dump_experiment(config))
        except OSError as exc:
            raise InputError(f"cannot write the run folder {path}: {exc.strerror}") from exc

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
