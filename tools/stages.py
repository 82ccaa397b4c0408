"""The two training stages: what a run is built from, validated by and saved as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from scipy.sparse import csr_matrix
from torch import nn

from gcn.checkpoint import load_checkpoint, save_checkpoint
from gcn.evaluation import Errors, labeling_errors, lifter_errors, means, mesh_errors
from gcn.labeling import PRIOR_EXCHANGED
from gcn.layers.sparse import SparseMatrix
from gcn.losses import SurfaceLoss
from gcn.pose2mesh import (
    MeshGraph,
    Pose2Mesh,
    build_graph,
    build_labeling,
    build_posenet,
    load_pose2mesh,
    load_posenet,
    save_weights,
)
from gcn.trainer import (
    Hooks,
    MeshTerms,
    StageConfig,
    TrainState,
    estimate_statistics,
    fit,
    labeling_terms,
    make_state,
    posenet_terms,
    step_generator,
)
from mesh.body import Body
from mesh.errors import InputError
from mesh.joints import HUMAN36M17
from mesh.samples import Batch
from tools.experiment import ExperimentConfig, RunFolder, experiment_body, pose_source, posed_bodies, synthesiser

VALIDATION_BATCH = 256
# Added to the run's seed: streams of their own, apart from every training step.
_VALIDATION_SEED, _EXCHANGE_SEED, _STATISTICS_SEED = 2**32, 2**33, 2**34
STATISTICS_BATCHES = 20
ACKNOWLEDGEMENT = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. "
    "The database was created with funding from NSF EIA-0196217."
)


def validation_batches(
    config: ExperimentConfig, body: Body, device: torch.device, *, with_vertices: bool
) -> dict[str, list[Batch]]:
    """Fixed samples of held-out poses: "exact" 2D, and "noisy" 2D as a detector gives."""
    count = config.validation_poses
    sizes = [min(VALIDATION_BATCH, count - start) for start in range(0, count, VALIDATION_BATCH)]
    batches = {}
    for name, clean in (("exact", 1.0), ("noisy", 0.0)):
        noise = replace(config.synthesis.noise, clean=clean)
        synthesis = replace(config.synthesis, noise=noise)
        source = synthesiser(replace(config, synthesis=synthesis), body, validation=True, device=device)
        seed = config.seed + _VALIDATION_SEED
        batches[name] = [
            source.batch(size, step_generator(seed, i, device), with_vertices=with_vertices)
            for i, size in enumerate(sizes)
        ]
    return batches


def _scores(held_out: dict[str, list[Batch]], measure: Callable[[list[Batch]], Errors]) -> dict[str, float]:
    """Mean of every error on every kind of held-out samples."""
    return {
        f"{name}/{metric}": value
        for name, batches in held_out.items()
        for metric, value in means(measure(batches)).items()
    }


def train_posenet(config: ExperimentConfig, path: Path, *, resume: bool, device: torch.device) -> None:
    """Train the lifter and write `weights.safetensors` into the run folder."""
    body = experiment_body(config)
    training = synthesiser(config, body, validation=False, device=device)
    held_out = validation_batches(config, body, device, with_vertices=False)
    torch.manual_seed(config.seed)
    posenet = build_posenet(config.model).to(device)

    def validate(model: nn.Module) -> dict[str, float]:
        return _scores(held_out, lambda batches: lifter_errors(model, config.model, batches))

    def batches(step: int) -> Batch:
        size = config.posenet_training.batch_size
        return training.batch(size, step_generator(config.seed, step, device), with_vertices=False)

    _run(
        config, config.posenet_training, posenet, path, resume=resume, device=device, batches=batches,
        terms=lambda batch: posenet_terms(posenet, config.model, batch),
        validate=validate, best_by="exact/lift_mpjpe_mm",
    )  # fmt: skip


def train_labeling(config: ExperimentConfig, path: Path, *, resume: bool, device: torch.device) -> None:
    """Train the left/right network and write `weights.safetensors` into the run folder."""
    body = experiment_body(config)
    training = synthesiser(config, body, validation=False, device=device)
    held_out = validation_batches(config, body, device, with_vertices=False)
    torch.manual_seed(config.seed)
    labeling = build_labeling(config.model).to(device)
    generator = torch.Generator(device)

    def validate(model: nn.Module) -> dict[str, float]:
        scores = _scores(held_out, lambda batches: labeling_errors(model, config.model, batches))
        wrong = [
            PRIOR_EXCHANGED * scores[f"{name}/exchange_missed"]
            + (1 - PRIOR_EXCHANGED) * scores[f"{name}/wrongly_exchanged"]
            for name in held_out
        ]
        return {**scores, "share_wrong": sum(wrong) / len(wrong)}

    def batches(step: int) -> Batch:
        generator.manual_seed(step_generator(config.seed + _EXCHANGE_SEED, step).initial_seed())
        size = config.labeling_training.batch_size
        return training.batch(size, step_generator(config.seed, step, device), with_vertices=False)

    _run(
        config, config.labeling_training, labeling, path, resume=resume, device=device, batches=batches,
        terms=lambda batch: labeling_terms(labeling, config.model, batch, generator),
        validate=validate, best_by="share_wrong",
    )  # fmt: skip


def train_meshnet(config: ExperimentConfig, path: Path, *, resume: bool, device: torch.device) -> None:
    """Train the mesh network on a trained lifter and write `weights.safetensors` of both."""
    if config.posenet_weights is None:
        raise InputError(
            "the mesh stage starts from a trained lifter: add --set posenet_weights=RUN/weights.safetensors"
        )
    posenet, lifter_config = load_posenet(config.posenet_weights)
    body = experiment_body(config)
    begun = None if config.meshnet_weights is None else load_pose2mesh(config.meshnet_weights, body)
    model_config = replace(lifter_config, meshnet=begun.config.meshnet if begun else config.model.meshnet)
    stage = config.meshnet_training
    training = synthesiser(config, body, validation=False, device=device)
    held_out = validation_batches(config, body, device, with_vertices=True)
    torch.manual_seed(config.seed)
    model = Pose2Mesh(model_config, begun.graph if begun else mesh_graph(config, body)).to(device)
    model.posenet.load_state_dict(posenet.state_dict())
    if begun:
        model.meshnet.load_state_dict(begun.meshnet.state_dict())
    model.posenet.requires_grad_(not stage.freeze_posenet)
    regressor = SparseMatrix(csr_matrix(body.regressor(HUMAN36M17))).to(device)
    terms = MeshTerms(SurfaceLoss(body.faces).to(device), regressor, stage.loss)

    def validate(candidate: nn.Module) -> dict[str, float]:
        assert isinstance(candidate, Pose2Mesh)
        seeds = (step_generator(config.seed + _STATISTICS_SEED, i, device) for i in range(STATISTICS_BATCHES))
        estimate_statistics(candidate, (training.batch(stage.batch_size, g, with_vertices=False) for g in seeds))
        return _scores(held_out, lambda batches: mesh_errors(candidate, regressor, batches))

    def batches(step: int) -> Batch:
        return training.batch(stage.batch_size, step_generator(config.seed, step, device), with_vertices=True)

    _run(
        replace(config, model=model_config), stage, model, path, resume=resume, device=device, batches=batches,
        terms=lambda batch: terms(model, batch), validate=validate, best_by="exact/mpvpe_mm",
    )  # fmt: skip


def mesh_graph(config: ExperimentConfig, body: Body) -> MeshGraph:
    """The body's graph, its up-sampling fitted to bodies in training poses."""
    generator, source = step_generator(config.seed, 0), pose_source(config.poses, validation=False)
    posed = posed_bodies(source, body, config.model.meshnet.upsampling_bodies, generator)
    return build_graph(config.model.meshnet, body, posed)


def _run(
    config: ExperimentConfig, stage: StageConfig, model: nn.Module, path: Path, *, resume: bool, device: torch.device,
    batches: Callable[[int], Batch], terms: Callable[[Batch], dict[str, torch.Tensor]],
    validate: Callable[[nn.Module], dict[str, float]], best_by: str,
) -> None:  # fmt: skip
    """Fresh or resumed, trained to the end, with the best averaged weights in `weights.safetensors`."""
    folder = RunFolder(path, resume=resume)
    state = make_state(model, stage)
    if resume:
        state.load_state_dict(load_checkpoint(folder.checkpoint, device)["state"])
        print(f"resumed {folder.path} at step {state.step} of {stage.steps}")
    folder.open(config)

    def save(current: TrainState, is_best: bool) -> None:
        if is_best:
            notes = {"step": str(current.step), best_by: f"{current.best:.4g}", "acknowledgement": ACKNOWLEDGEMENT}
            save_weights(folder.path / "weights.safetensors", current.average.module, config.model, notes)
        save_checkpoint(folder.checkpoint, {"state": current.state_dict()})

    hooks = Hooks(validate=validate, best_by=best_by, log=folder.log, save=save)
    fit(state, stage, terms, batches, hooks, seed=config.seed)
    print(f"done: {best_by} {state.best:.4g}, weights in {folder.path / 'weights.safetensors'}")
