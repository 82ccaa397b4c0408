"""The four training stages: what each is built from, minimises, and is validated by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import nn

from data.draws import Draws, step_generator
from data.records import open_records
from data.synthesis import BatchMaker
from gcn.distributed import World
from gcn.evaluation import (
    Errors,
    labeling_errors,
    lift,
    lifter_errors,
    mesh_errors,
    predict_mesh,
    uncertainty_scores,
)
from gcn.labeling import PRIOR_EXCHANGED
from gcn.layers.sparse import SparseMatrix
from gcn.mirroring import MirrorAveraged
from gcn.objectives import Judged, LabelingObjective, LifterObjective, MeshObjective, Objective, UncertaintyObjective
from gcn.pose2mesh import (
    MESH_WEIGHTS,
    MeshGraph,
    ModelConfig,
    Pose2Mesh,
    build_labeling,
    build_uncertainty,
    load_pose2mesh,
)
from gcn.surface_loss import SurfaceLoss
from gcn.train_state import StageConfig
from gcn.trainer import StopTraining, estimate_statistics
from gcn.uncertainty import weights_digest
from mesh.body import Body
from mesh.errors import InputError, require
from mesh.joints import COCO19, HUMAN36M17
from mesh.samples import Batch
from tools.experiment import ExperimentConfig, batch_maker
from tools.reliability_plot import draw_reliability
from tools.stage_networks import (
    begun_lifter,
    check_statistics,
    freeze_decoders,
    fresh_mesh,
    saved_mesh,
    weights_of,
)

VALIDATION_BATCH = 256
STATISTICS_BATCHES = 20
# Streams of random numbers apart from the training steps'.
_VALIDATION, _STATISTICS = 1, 2
HeldOut = dict[str, list[Batch]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything that one stage's training needs.

    `validate(model, limit)` scores the first `limit` batches of each kind of held-out samples (None: all);
    `draw_samples(model, folder, count, step)` shows some of them; `draw_plot(folder, step)` what was validated last.
    `notes` go into the weights file, and a checkpoint with others is refused.
    """

    name: str
    config: StageConfig
    model: nn.Module
    networks: ModelConfig
    objective: Objective
    training: BatchMaker
    with_vertices: bool
    best_by: str
    validate: Callable[[nn.Module, int | None], dict[str, float]]
    draw_samples: Callable[[nn.Module, Path, int, int], None] | None = None
    draw_plot: Callable[[Path, int], None] | None = None
    graph: MeshGraph | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every stage is built in: the configuration, the processes, what an earlier run saved, the wish to stop."""

    config: ExperimentConfig
    body: Body
    world: World
    saved: Mapping[str, Any] | None
    stops: Callable[[], bool]

    def held_out(self, *, with_vertices: bool, truth: str = "joints_valid") -> HeldOut:
        """This process's rows of fixed held-out samples, of each kind; see `_kinds`. `truth`: what must be known."""
        world, batches = self.world, HeldOut()
        for name, config in _kinds(self.config).items():
            source = batch_maker(config, self.body, validation=True, device=world.device)
            count = min(config.validation_poses, len(source))
            order = source.order(config.seed)
            batches[name] = []
            for number, start in enumerate(range(0, count, VALIDATION_BATCH)):
                size = min(VALIDATION_BATCH, count - start)
                rows = slice(world.rank * size // world.size, (world.rank + 1) * size // world.size)
                generator = step_generator(config.seed, number, world.device, stream=_VALIDATION)
                draws = Draws(size, generator, rows, world.device)
                batch = source.batch(order.indices(start, size)[rows], draws, with_vertices=with_vertices)
                # What has no truth cannot be scored.
                known = batch.mesh_valid if with_vertices else getattr(batch, truth).all(1)
                batches[name].append(batch if bool(known.all()) else batch.where(known))
            found = world.sum(torch.tensor(float(sum(len(batch) for batch in batches[name])), device=world.device))
            require(bool(found > 0), f'no held-out sample has the truth that "{name}" 2D is scored by')
        return batches

    def scores(self, held_out: HeldOut, measure: Callable[[Batch], Errors], limit: int | None) -> dict[str, float]:
        """Mean of every error over every kind of held-out samples, of all processes."""
        sums: dict[str, list[torch.Tensor]] = {}
        for kind, batches in held_out.items():
            for batch in batches[:limit]:
                if self.world.size == 1 and self.stops():
                    raise StopTraining
                for metric, values in measure(batch).items():
                    sums.setdefault(f"{kind}/{metric}", []).append(values.double())
        totals = [torch.stack([torch.cat(v).sum(), torch.tensor(float(sum(map(len, v))))]) for v in sums.values()]
        summed = self.world.sum(torch.stack(totals).to(self.world.device)).tolist()
        return {name: total / count for name, (total, count) in zip(sums, summed)}


def _kinds(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """What is validated: "exact" 2D; and "noisy" 2D as a detector gives, or the "detected" 2D that records have."""

    def with_noise(clean: float, **sampling: str) -> ExperimentConfig:
        dataset = None if given is None else replace(given, **sampling)  # type: ignore[arg-type]
        synthesis = replace(config.synthesis.to_measure(clean=clean), mirror=0.0)
        return replace(config, synthesis=synthesis, validation_dataset=dataset)

    given = config.validation_dataset
    if given is not None and "pose" not in open_records(given.records):
        raise InputError(f'validation_dataset {given.records} has no bodies, by which "exact" 2D is made and scored')
    exact = {"exact": with_noise(1.0, input="projected")}
    if given is not None and given.input == "recorded":
        return {**exact, "detected": with_noise(1.0)}
    return {**exact, "noisy": with_noise(0.0)}


def posenet_stage(setting: Setting) -> Stage:
    """The lifter."""
    config, device = setting.config, setting.world.device
    stage = config.posenet_training
    torch.manual_seed(config.seed)
    model, networks = begun_lifter(config, setting.saved)
    model = model.to(device)
    check_statistics(model, stage)
    objective = LifterObjective(networks, stage.loss, device)
    require(
        objective.cycle or stage.freeze_posenet or not (networks.lifter == "cyclic" and networks.cyclic.decoder),
        "the decoder of a cyclic lifter learns by its cycle alone: set posenet_training.loss.cycle above 0 and neither "
        "model.depth_only nor model.denoise, or leave it out with model.cyclic.decoder=false",
    )
    training = batch_maker(config, setting.body, validation=False, device=device)
    held_out = setting.held_out(with_vertices=False)

    def validate(candidate: nn.Module, limit: int | None) -> dict[str, float]:
        batches = _statistics_batches(setting, training, stage.batch_size)
        estimate_statistics(candidate, batches, lambda batch: lift(candidate, networks, batch))
        return setting.scores(held_out, lambda batch: lifter_errors(candidate, networks, [batch]), limit)

    def draw_samples(model: nn.Module, folder: Path, count: int, step: int) -> None:
        from tools.snapshots import write_pose_samples

        batch = held_out["exact"][0]
        with torch.inference_mode():
            joints = lift(model, networks, batch)
        shown = (batch.keypoints_px, batch.confidence, joints, batch.joints_m)
        keypoints, confidence, predicted, true = (t[:count].cpu().numpy() for t in shown)
        write_pose_samples(folder, keypoints, confidence, predicted, true, COCO19, step)

    return Stage(
        name="posenet", config=stage, model=model, networks=networks,
        objective=objective, with_vertices=False,
        best_by="exact/lift_mpjpe_mm", training=training, validate=validate, draw_samples=draw_samples,
    )  # fmt: skip


def labeling_stage(setting: Setting) -> Stage:
    """The left/right network."""
    config, device = setting.config, setting.world.device
    noise = config.synthesis.noise
    require(
        noise.exchange == 0 and noise.exchange_arms == 0,
        "the left/right network exchanges sides itself: set synthesis.noise.exchange and exchange_arms to 0",
    )
    networks = config.model.networks()
    torch.manual_seed(config.seed)
    held_out = setting.held_out(with_vertices=False)

    def validate(model: nn.Module, limit: int | None) -> dict[str, float]:
        scores = setting.scores(held_out, lambda batch: labeling_errors(model, networks, [batch]), limit)
        wrong = [
            PRIOR_EXCHANGED * scores[f"{name}/exchange_missed"]
            + (1 - PRIOR_EXCHANGED) * scores[f"{name}/wrongly_exchanged"]
            for name in held_out
        ]
        return {**scores, "share_wrong": sum(wrong) / len(wrong)}

    return Stage(
        name="labeling", config=config.labeling_training, model=build_labeling(networks).to(device),
        networks=networks, objective=LabelingObjective(networks), with_vertices=False, best_by="share_wrong",
        training=batch_maker(config, setting.body, validation=False, device=device), validate=validate,
    )  # fmt: skip


def uncertainty_stage(setting: Setting) -> Stage:
    """The network of expected errors, on a trained Pose2Mesh that stays as it is and is no part of what is trained."""
    config, world, body = setting.config, setting.world, setting.body
    if config.model.pose2mesh_weights is None:
        raise InputError("the uncertainty stage judges trained mesh weights: add --set model.pose2mesh_weights=FILE")
    judged = load_pose2mesh(weights_of(config.model.pose2mesh_weights), body)
    notes = {MESH_WEIGHTS: weights_digest(judged)}
    networks = replace(judged.config, uncertainty=config.model.uncertainty)
    averaged = MirrorAveraged(judged, body).to(world.device)
    objective = UncertaintyObjective(averaged, SparseMatrix(csr_matrix(body.regressor(HUMAN36M17))).to(world.device))
    torch.manual_seed(config.seed)
    held_out = setting.held_out(with_vertices=False, truth="regressed_valid")
    seen: dict[tuple[str, int], Judged] = {}  # the meshes stay as they are
    last: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def measure(model: nn.Module, batch: Batch, key: tuple[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
        if world.size == 1 and setting.stops():
            raise StopTraining
        if key not in seen:
            seen[key] = objective.judge(batch)
        with torch.inference_mode():
            return seen[key].expected_m(model).cpu(), seen[key].error_m.cpu()

    def validate(model: nn.Module, limit: int | None) -> dict[str, float]:
        scores: dict[str, float] = {}
        for kind, batches in held_out.items():
            rows = [measure(model, batch, (kind, k)) for k, batch in enumerate(batches[:limit])]
            parts = [part for of_rank in world.gather(rows) for part in of_rank]
            expected, error = (torch.cat(column) for column in zip(*parts))
            last[kind] = expected, error
            scores |= {f"{kind}/{name}": value for name, value in uncertainty_scores(expected, error).items()}
        return {**scores, "nll": sum(scores[f"{kind}/nll"] for kind in held_out) / len(held_out)}

    return Stage(
        name="uncertainty", config=config.uncertainty_training, model=build_uncertainty(networks).to(world.device),
        networks=networks, objective=objective, with_vertices=False, best_by="nll",
        training=batch_maker(config, body, validation=False, device=world.device), validate=validate,
        draw_plot=lambda folder, step: draw_reliability(last, folder / "reliability.png", step), notes=notes,
    )  # fmt: skip


def meshnet_stage(setting: Setting) -> Stage:
    """The mesh network, on a trained lifter, which learns on by its own term unless it is frozen."""
    config, device, body = setting.config, setting.world.device, setting.body
    stage = config.meshnet_training
    torch.manual_seed(config.seed)
    model = (fresh_mesh(config, body) if setting.saved is None else saved_mesh(config, body, setting.saved)).to(device)
    model.posenet.requires_grad_(not stage.freeze_posenet)
    freeze_decoders(model.posenet)
    check_statistics(model, stage)
    training = batch_maker(config, body, validation=False, device=device)
    held_out = setting.held_out(with_vertices=True)
    regressor = SparseMatrix(csr_matrix(body.regressor(HUMAN36M17))).to(device)
    surface = SurfaceLoss(body.faces).to(device)

    def validate(candidate: nn.Module, limit: int | None) -> dict[str, float]:
        assert isinstance(candidate, Pose2Mesh)
        batches = _statistics_batches(setting, training, stage.batch_size)
        estimate_statistics(
            candidate, batches, lambda batch: candidate(batch.keypoints_px, batch.confidence, batch.intrinsics)
        )
        return setting.scores(held_out, lambda batch: mesh_errors(candidate, regressor, [batch]), limit)

    def draw_samples(candidate: nn.Module, folder: Path, count: int, step: int) -> None:
        from tools.snapshots import write_mesh_samples

        batch = held_out["exact"][0]
        assert batch.vertices_m is not None
        with torch.inference_mode():
            vertices = predict_mesh(candidate, batch.where(torch.arange(len(batch), device=device) < count))
            pelvis = regressor(vertices.transpose(0, 1))[HUMAN36M17.root_idx]
            vertices = vertices - pelvis[:, None]
        shown = (batch.keypoints_px, batch.confidence, vertices, batch.vertices_m)
        keypoints, confidence, predicted, true = (t[:count].cpu().numpy() for t in shown)
        write_mesh_samples(folder, keypoints, confidence, predicted, true, body.faces, step)

    return Stage(
        name="meshnet", config=stage, model=model, networks=model.config,
        objective=MeshObjective(surface, regressor, stage.loss.surface_share), training=training, with_vertices=True,
        best_by="exact/mpvpe_mm", validate=validate, draw_samples=draw_samples, graph=model.graph,
    )  # fmt: skip


STAGES: dict[str, Callable[[Setting], Stage]] = {
    "posenet": posenet_stage,
    "meshnet": meshnet_stage,
    "labeling": labeling_stage,
    "uncertainty": uncertainty_stage,
}


def _statistics_batches(setting: Setting, training: BatchMaker, size: int) -> Iterator[Batch]:
    """This process's rows of the training batches that batch-norm statistics are estimated from."""
    world, order = setting.world, training.order(setting.config.seed + 1)
    rows = slice(world.rank * size // world.size, (world.rank + 1) * size // world.size)
    for number in range(STATISTICS_BATCHES):
        generator = step_generator(setting.config.seed, number, world.device, stream=_STATISTICS)
        index = order.indices(number * size, size)[rows]
        yield training.batch(index, Draws(size, generator, rows, world.device), with_vertices=False)
