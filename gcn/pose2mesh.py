"""Pose2Mesh: a lifter and a mesh network joined, with the graph they belong to (Choi et al. 2020)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gcn.coarsening import Hierarchy, coarsen, hierarchy_from_parents
from gcn.features import Normalisation, centred_features, pose_features
from gcn.frames import GRAPH_LEVEL, NODE_LEVEL, NodeFrames, fit_frames
from gcn.integer_linear import fits_integers, from_integers, to_integers
from gcn.labeling import LabelingConfig, LabelingNet
from gcn.lifters.cyclic import CyclicConfig, CyclicLifter
from gcn.lifters.denoise import DenoiserConfig, PoseDenoiser, Refined
from gcn.lifters.depth_only import DepthOnly
from gcn.lifters.martinez import Martinez, MartinezConfig
from gcn.lifters.semgcn import SemGCN, SemGCNConfig
from gcn.lifters.split import SplitConfig, SplitLifter
from gcn.meshnet import MeshNet, MeshNetConfig
from gcn.meshnet_full import LEVELS as FULL_LEVELS
from gcn.meshnet_full import FullMeshNet
from gcn.posenet import PoseNet, PoseNetConfig
from gcn.uncertainty import ErrorNet, UncertaintyConfig, weights_digest
from gcn.upsampling import Upsampling, fit_upsampling
from mesh.body import Body
from mesh.camera import centred_view
from mesh.errors import InputError, require
from mesh.files import replacing
from mesh.joints import COCO19

JOINTS = COCO19
FORMAT = "meshrecovery-weights-1"
_LONGEST_REASON = 200
_SCALE = ".scale"  # what belongs to weights in whole numbers is called after them
MESH_WEIGHTS = "mesh_weights"  # metadata of expected errors: the `weights_digest` of the mesh weights they belong to
_EARLIER = "holds a mesh network of an earlier version: train it anew; its lifter can be used"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the networks see of B people, `features` (B, J, C), in the frame that `turn` (B, 3, 3) leads from into the
    camera's; None: it is the camera's."""

    features: Tensor
    turn: Tensor | None

    def to_camera(self, points: Tensor) -> Tensor:
        """What the networks found, in the camera's frame: (B, N, 3) -> (B, N, 3)."""
        if self.turn is None:
            return points
        with torch.autocast(points.device.type, enabled=False):  # rounded to bf16, a mesh would have bumps of its own
            return points.float() @ self.turn.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks and how their input is prepared.

    `lifter` names the network that lifts 2D joints to 3D, whose size stands in the section of that name. Any of them
    can keep to the picture's x and y (`depth_only`) and be followed by a denoiser of 3D poses (`denoise`).

    `view`: "centred" networks see the person as a camera does that is turned towards them, and how large they are to it
    (`mesh.camera.centred_view`); "picture" networks see the joints as they lie in the picture, free of place and size,
    as the original does.
    """

    view: Literal["centred", "picture"] = "centred"
    normalisation: Normalisation = "isotropic"
    confidence: bool = True
    lifter: Literal["posenet", "split", "martinez", "semgcn", "cyclic"] = "posenet"
    depth_only: bool = False
    denoise: bool = False
    posenet: PoseNetConfig = field(default_factory=PoseNetConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    martinez: MartinezConfig = field(default_factory=MartinezConfig)
    semgcn: SemGCNConfig = field(default_factory=SemGCNConfig)
    cyclic: CyclicConfig = field(default_factory=CyclicConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    meshnet: MeshNetConfig = field(default_factory=MeshNetConfig)
    labeling: LabelingConfig = field(default_factory=LabelingConfig)
    uncertainty: UncertaintyConfig = field(default_factory=UncertaintyConfig)

    def __post_init__(self) -> None:
        require(
            not self.depth_only or self.normalisation == "isotropic",
            "model.depth_only takes x and y from the picture, which needs model.normalisation=isotropic",
        )
        require(
            self.confidence or self.view == "picture",
            "networks without model.confidence see the joints as they lie in the picture: set model.view=picture",
        )

    @property
    def feature_channels(self) -> int:
        if self.view == "centred":
            return 4
        return 3 if self.confidence else 2

    @property
    def has_cycle(self) -> bool:
        """Whether the lifter can be asked for its 2D joints again."""
        return self.lifter == "cyclic" and self.cyclic.decoder and not self.depth_only and not self.denoise

    def see(self, keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor | None = None) -> Seen:
        """What every network sees of the picture: (B, J, 2), (B, J), (B, 4) of the camera, 0 or None: not known."""
        if self.view == "picture":
            features = pose_features(keypoints_px, confidence, self.normalisation, with_confidence=self.confidence)
            return Seen(features=features, turn=None)
        if intrinsics is None:
            intrinsics = keypoints_px.new_zeros(len(keypoints_px), 4)
        view, turn = centred_view(keypoints_px, confidence, intrinsics)
        return Seen(features=centred_features(view, confidence, self.normalisation), turn=turn)


_LIFTERS: dict[str, Callable[..., nn.Module]] = {
    "posenet": PoseNet,
    "split": SplitLifter,
    "martinez": Martinez,
    "semgcn": SemGCN,
    "cyclic": CyclicLifter,
}


def build_lifter(config: ModelConfig) -> nn.Module:
    """The lifter alone: (B, 19, C) features to (B, 19, 3) metres, relative to the root."""
    lifter = _LIFTERS[config.lifter](JOINTS, config.feature_channels, **asdict(getattr(config, config.lifter)))
    if config.depth_only:
        lifter = DepthOnly(lifter, JOINTS)
    if config.denoise:
        lifter = Refined(lifter, PoseDenoiser(JOINTS, **asdict(config.denoiser)))
    return lifter


@dataclass(frozen=True, kw_only=True)
class MeshGraph:
    """What ties a MeshNet to a body: the coarsened graph and, for plan "frames", the nodes and their up-sampling."""

    hierarchy: Hierarchy
    upsampling: Upsampling | None = None
    frames: NodeFrames | None = None


def build_graph(config: MeshNetConfig, body: Body, posed_vertices: np.ndarray) -> MeshGraph:
    """Coarsen a body's mesh; `posed_vertices` (S, V, 3) metres, the first in rest pose, fit what "frames" needs."""
    if config.plan == "full":
        return MeshGraph(hierarchy=coarsen(body.edges, body.num_vertices, FULL_LEVELS))
    vertices = np.asarray(posed_vertices, np.float64)
    hierarchy = coarsen(body.edges, body.num_vertices, GRAPH_LEVEL)
    upsampling = fit_upsampling(vertices, hierarchy, NODE_LEVEL, num_terms=config.upsampling_terms)
    frames = fit_frames(body, hierarchy, upsampling, vertices, JOINTS)
    return MeshGraph(hierarchy=hierarchy, upsampling=upsampling, frames=frames)


def build_meshnet(config: ModelConfig, graph: MeshGraph) -> MeshNet | FullMeshNet:
    """The mesh network alone."""
    m = config.meshnet
    if m.plan == "full":
        return FullMeshNet(
            JOINTS, config.feature_channels + 3, graph.hierarchy, order=m.order, rescaling=m.rescaling,
            linear_skip=m.linear_skip,
        )  # fmt: skip
    if graph.frames is None or graph.upsampling is None:
        raise ValueError('plan "frames" needs a graph that was built for it')
    return MeshNet(
        JOINTS, config.feature_channels + 3, graph.hierarchy, graph.frames, graph.upsampling, width=m.width,
        blocks=m.blocks, channels=m.channels, graph_blocks=m.graph_blocks, order=m.order,
    )  # fmt: skip


def graph_tensors(graph: MeshGraph) -> dict[str, Tensor]:
    """A graph as tensors, to be stored beside the weights that were trained on it, with its `hierarchy.digest`."""
    tensors = {f"parent{i}": torch.from_numpy(p.astype(np.int16)) for i, p in enumerate(graph.hierarchy.parents)}
    if graph.upsampling is not None:
        tensors["upsampling_nodes"] = torch.from_numpy(graph.upsampling.nodes.astype(np.int16))
        tensors["upsampling_weights"] = torch.from_numpy(graph.upsampling.weights)
    if graph.frames is not None:
        tensors |= {f"frames_{f.name}": torch.from_numpy(getattr(graph.frames, f.name)) for f in fields(NodeFrames)}
    return tensors


def graph_from_tensors(tensors: Mapping[str, Tensor], digest: str, body: Body, origin: str) -> MeshGraph:
    """The inverse of `graph_tensors`; InputError, naming `origin`, for another body's graph or an earlier version's."""
    parents = [tensors[f"parent{i}"].numpy() for i in range(sum(k.startswith("parent") for k in tensors))]
    hierarchy = hierarchy_from_parents(body.edges, body.num_vertices, parents)
    if hierarchy.digest != digest:
        raise InputError(f"{origin} was trained on another mesh than {body.name}: their graphs differ")
    if "upsampling_nodes" not in tensors:
        return MeshGraph(hierarchy=hierarchy)
    names = {f.name: f"frames_{f.name}" for f in fields(NodeFrames)}
    if not set(names.values()) <= tensors.keys():
        raise InputError(f"{origin} {_EARLIER}")
    nodes = tensors["upsampling_nodes"].numpy().astype(np.int64)
    return MeshGraph(
        hierarchy=hierarchy,
        upsampling=Upsampling(nodes=nodes, weights=tensors["upsampling_weights"].numpy()),
        frames=NodeFrames(**{name: tensors[stored].numpy() for name, stored in names.items()}),
    )


class Pose2Mesh(nn.Module):
    """2D joints (COCO-19) to root-relative 3D joints and mesh vertices, metres, camera frame."""

    def __init__(self, config: ModelConfig, graph: MeshGraph) -> None:
        super().__init__()
        self.config, self.graph = config, graph
        self.posenet = build_lifter(config)
        self.meshnet = build_meshnet(config, graph)

    def train(self, mode: bool = True) -> Pose2Mesh:
        """A frozen lifter stays in evaluation mode: no dropout, no moving statistics."""
        super().train(mode)
        if not any(p.requires_grad for p in self.posenet.parameters()):
            self.posenet.eval()
        return self

    def forward(
        self, keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, 19, 2) px, (B, 19), (B, 4) px or None -> lifted joints (B, 19, 3), vertices (B, V, 3), camera frame.

        The mesh loss does not reach PoseNet: its output is detached, as in the original.
        """
        seen = self.config.see(keypoints_px, confidence, intrinsics)
        joints = self.posenet(seen.features)
        vertices = self.meshnet(seen.features, joints.detach())
        return seen.to_camera(joints), seen.to_camera(vertices)


def build_labeling(config: ModelConfig) -> LabelingNet:
    """The network that tells left from right."""
    return LabelingNet(JOINTS, config.feature_channels, width=config.labeling.width, blocks=config.labeling.blocks)


def build_uncertainty(config: ModelConfig) -> ErrorNet:
    """The network that tells the expected error of each joint."""
    given = config.uncertainty
    return ErrorNet(JOINTS, config.feature_channels, width=given.width, blocks=given.blocks)


# What a weights file can hold beside a lifter, whatever its kind, which is called "posenet".
_KINDS: dict[type[nn.Module], str] = {Pose2Mesh: "pose2mesh", LabelingNet: "labeling", ErrorNet: "uncertainty"}


def save_weights(
    path: Path, model: nn.Module, config: ModelConfig, notes: Mapping[str, str], *, integers: bool = False
) -> None:
    """Write a network's weights as safetensors in half precision, with config, graph and its hash. Atomic.

    With `integers` those of large linear layers are rounded to whole numbers times a scale for each output.
    """
    from safetensors.torch import save

    kind = _KINDS.get(type(model), "posenet")
    prefix = "" if isinstance(model, Pose2Mesh) else f"{kind}."
    tensors = {
        prefix + name: _shortened(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    for name, layer in model.named_modules() if integers else ():
        if fits_integers(layer):
            key = f"{prefix}{name}.weight"
            tensors[key], tensors[key + _SCALE] = to_integers(layer.weight)
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(asdict(config)), **notes}
    if isinstance(model, Pose2Mesh):
        metadata["graph"] = model.graph.hierarchy.digest
        tensors |= {f"graph.{name}": value for name, value in graph_tensors(model.graph).items()}
    with replacing(path) as file:
        file.write(save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata))


def _shortened(value: Tensor) -> Tensor:
    """In half precision, unless that has no such large numbers: the variances of batch norm can be any."""
    half = value.half()
    return half if half.isfinite().all() or not value.isfinite().all() else value.float()


def _read_weights(path: Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"no weights file {path}: expected a .safetensors written by the training tools")
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise InputError(f"{path} is not a readable safetensors file: {exc}") from exc
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds no {FORMAT} (format {metadata.get('format')!r}); train with this version")
    if metadata.get("kind") not in kinds:
        raise InputError(f"{path} holds {metadata.get('kind')} weights; expected {' or '.join(kinds)}")
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{path}: {broken[0]} holds NaN or infinity")
    return tensors, metadata


@contextlib.contextmanager
def _consistent(path: Path) -> Iterator[None]:
    """Turns what a file with a right header and wrong contents leads to into one line."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as exc:
        reason = " ".join(str(exc).split())[:_LONGEST_REASON]  # torch tells what is missing in further lines
        raise InputError(f"{path} does not fit its own description: {reason}") from exc


def model_config(text: str) -> ModelConfig:
    """The config that `json.dumps(asdict(config))` wrote."""
    values: dict[str, Any] = {"view": "picture", **json.loads(text)}  # files of before there were views do not say
    parts = {f.name: f.default_factory for f in fields(ModelConfig) if f.default_factory is not MISSING}
    return ModelConfig(**values | {name: part(**values.get(name, {})) for name, part in parts.items()})


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        is_scale = name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors
        if name.startswith(prefix) and not is_scale:
            if value.dtype == torch.int8:
                value = from_integers(value, tensors[name + _SCALE])
            found[name.removeprefix(prefix)] = value.float() if value.is_floating_point() else value
    return found


def load_labeling(path: str | Path) -> tuple[LabelingNet, ModelConfig]:
    """The left/right network of a weights file, in evaluation mode, and the config it was trained with."""
    path = Path(path)
    tensors, metadata = _read_weights(path, "labeling")
    with _consistent(path):
        config = model_config(metadata["config"])
        labeling = build_labeling(config)
        labeling.load_state_dict(_strip(tensors, "labeling."))
    return labeling.eval(), config


def load_uncertainty(path: str | Path, model: Pose2Mesh) -> ErrorNet:
    """The network of a weights file that tells the expected errors of `model`, in evaluation mode; no other's."""
    path = Path(path)
    tensors, metadata = _read_weights(path, "uncertainty")
    if metadata.get(MESH_WEIGHTS) != weights_digest(model):
        raise InputError(
            f"{path} tells the errors of other mesh weights than those in use: train it for these with "
            "tools/train_uncertainty.py, or move it away"
        )
    with _consistent(path):
        uncertainty = build_uncertainty(model_config(metadata["config"]))
        uncertainty.load_state_dict(_strip(tensors, "uncertainty."))
    return uncertainty.eval()


def load_posenet(path: str | Path) -> tuple[nn.Module, ModelConfig]:
    """The lifter of a weights file, in evaluation mode, and the config it was trained with."""
    path = Path(path)
    tensors, metadata = _read_weights(path, "posenet", "pose2mesh")
    with _consistent(path):
        config = model_config(metadata["config"])
        posenet = build_lifter(config)
        posenet.load_state_dict(_strip(tensors, "posenet."))
    return posenet.eval(), config


def load_pose2mesh(path: str | Path, body: Body) -> Pose2Mesh:
    """Lifter and mesh network of a weights file, in evaluation mode; refuses weights of another mesh."""
    path = Path(path)
    tensors, metadata = _read_weights(path, "pose2mesh")
    with _consistent(path):
        config = model_config(metadata["config"])
        if config.meshnet.plan not in ("frames", "full"):
            raise InputError(f"{path} {_EARLIER}")
        graph = graph_from_tensors(_strip(tensors, "graph."), metadata["graph"], body, str(path))
        model = Pose2Mesh(config, graph)
        networks = {name: value for name, value in tensors.items() if not name.startswith("graph.")}
        model.load_state_dict(_strip(networks, ""))
    return model.eval()
