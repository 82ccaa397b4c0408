"""The networks that a training stage begins with: new, trained elsewhere, or of a checkpoint; and what they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from gcn.lifters.cyclic import CyclicLifter
from gcn.lifters.denoise import Refined
from gcn.lifters.semgcn import SemGCN
from gcn.pose2mesh import (
    MeshGraph,
    ModelConfig,
    Pose2Mesh,
    build_graph,
    build_lifter,
    graph_from_tensors,
    load_pose2mesh,
    load_posenet,
    model_config,
)
from gcn.train_state import StageConfig
from mesh.body import Body
from mesh.errors import InputError, require
from tools.experiment import ExperimentConfig, pose_source, posed_bodies


def freeze_decoders(lifter: nn.Module) -> None:
    """The mesh stage asks no lifter, whatever it is wrapped in, for its 2D joints again."""
    for module in lifter.modules():
        if isinstance(module, CyclicLifter) and module.decoder is not None:
            module.decoder.requires_grad_(False)


def check_statistics(model: nn.Module, stage: StageConfig) -> None:
    """Batch norm has no variance of one row; SemGCN's has a row for each joint."""
    many = {norm for lifter in model.modules() if isinstance(lifter, SemGCN) for norm in lifter.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m not in many and m.weight.requires_grad]
    given = f"batch_size {stage.batch_size} in {stage.accumulate} piece(s) (accumulate)"
    enough = not norms or stage.batch_size // stage.accumulate >= 2
    require(enough, f"a network with batch norm needs two samples in a piece of the batch: got {given}")


def weights_of(path: str) -> Path:
    """A weights file, or that of a run folder."""
    given = Path(path)
    return given / "weights.safetensors" if given.is_dir() else given


def begun_lifter(config: ExperimentConfig, saved: Mapping[str, Any] | None) -> tuple[nn.Module, ModelConfig]:
    """A lifter that is new or trained elsewhere; of a checkpoint, whose state is loaded by the caller.

    A denoiser can be put behind a lifter that was trained without one; frozen, that lifter stays as it is.
    """
    given, frozen = config.model, config.posenet_training.freeze_posenet
    if given.posenet_start is None:
        require(not frozen, "posenet_training.freeze_posenet needs a trained lifter: set model.posenet_start")
        return build_lifter(given.networks()), given.networks()
    if saved is None:
        begun, networks = load_posenet(weights_of(given.posenet_start))
        lifter, added = begun, given.denoise and not networks.denoise
        if added:
            networks = replace(networks, denoise=True, denoiser=given.denoiser)
            lifter = build_lifter(networks)
            assert isinstance(lifter, Refined)
            lifter.lifter.load_state_dict(begun.state_dict())
    else:
        networks = model_config(saved["networks"])
        lifter = build_lifter(networks)
    require(
        given.view == networks.view,
        f"model.view={given.view}: the lifter that this run goes on from sees the {networks.view} view; set it to that",
    )
    for name in ("depth_only", "denoise"):
        fits = getattr(networks, name) or not getattr(given, name)
        require(fits, f"model.{name}=true: the lifter that this run goes on from was trained without; set it to false")
    if frozen:
        require(given.denoise, "posenet_training.freeze_posenet leaves nothing to train without model.denoise=true")
        assert isinstance(lifter, Refined)
        lifter.lifter.requires_grad_(False)
    return lifter, networks


def fresh_mesh(config: ExperimentConfig, body: Body) -> Pose2Mesh:
    """A trained lifter, and a mesh network that is new or trained elsewhere."""
    given = config.model
    if given.posenet_weights is None:
        raise InputError("the mesh stage starts from a trained lifter: add --set model.posenet_weights=RUN_FOLDER")
    posenet, lifter_config = load_posenet(weights_of(given.posenet_weights))
    begun = None if given.meshnet_weights is None else load_pose2mesh(weights_of(given.meshnet_weights), body)
    require(
        begun is None or begun.config.view == lifter_config.view,
        f"model.meshnet_weights see another view than the lifter, {lifter_config.view}: they cannot work together",
    )
    networks = replace(lifter_config, meshnet=begun.config.meshnet if begun else given.meshnet)
    model = Pose2Mesh(networks, begun.graph if begun else mesh_graph(config, body))
    model.posenet.load_state_dict(posenet.state_dict())
    if begun:
        model.meshnet.load_state_dict(begun.meshnet.state_dict())
    return model


def saved_mesh(config: ExperimentConfig, body: Body, saved: Mapping[str, Any]) -> Pose2Mesh:
    """The networks of a checkpoint on the very graph they were trained on; the state is loaded by the caller."""
    graph = graph_from_tensors(saved["graph"], saved["graph_digest"], body, "the checkpoint")
    begun = config.model.meshnet_weights is not None
    networks = model_config(saved["networks"])
    return Pose2Mesh(networks if begun else replace(networks, meshnet=config.model.meshnet), graph)


def mesh_graph(config: ExperimentConfig, body: Body) -> MeshGraph:
    """The body's graph, its up-sampling fitted to bodies in training poses."""
    source = pose_source(config.poses, validation=False)
    posed = posed_bodies(source, body, config.model.meshnet.upsampling_bodies, config.seed)
    return build_graph(config.model.meshnet, body, posed)


def dump_networks(networks: ModelConfig) -> str:
    """What `model_config` reads."""
    return json.dumps(asdict(networks))
