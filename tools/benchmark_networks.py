"""The benchmark's networks: `full`, the default, the original computed literally, and one by PyTorch Geometric."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gcn.coarsening import coarsen
from gcn.meshnet_full import LEVELS, FullMeshNet
from gcn.pose2mesh import JOINTS, ModelConfig, build_lifter
from gcn.posenet import PoseNetConfig
from gcn.recovery import MeshRecovery
from tools.benchmark_measure import Findings, Measurement, Setup, Work, seeded

if TYPE_CHECKING:
    from mesh.body import Body

# The original's networks and how they see the picture.
ORIGINAL = ModelConfig(
    normalisation="per_axis",
    view="picture",
    confidence=False,
    posenet=PoseNetConfig(width=4096, blocks=2, dropout=0.5, norm="batch", output_unit_m=0.001),
)
MESH_NETWORKS = ("default", "full", "ChebConv", "original")
_MATRIX_SIDE = 1024


class LifterAndMesh(nn.Module):
    """Any lifter and any mesh network, called as `Pose2Mesh` is."""

    def __init__(self, config: ModelConfig, posenet: nn.Module, meshnet: nn.Module) -> None:
        super().__init__()
        self.config, self.posenet, self.meshnet = config, posenet, meshnet

    def forward(
        self, keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, 19, 2) px, (B, 19), (B, 4) px -> lifted joints (B, 19, 3), vertices (B, V, 3)."""
        seen = self.config.see(keypoints_px, confidence, intrinsics)
        joints = self.posenet(seen.features)
        return seen.to_camera(joints), seen.to_camera(self.meshnet(seen.features, joints.detach()))


def lifter_and_mesh(name: str, body: Body, device: torch.device) -> LifterAndMesh:
    """One of `MESH_NETWORKS` with its lifter: the default's with the shipped weights, the others' 4096 wide."""
    if name == "default":
        shipped = MeshRecovery.from_pretrained(device=device).model
        return LifterAndMesh(shipped.config, shipped.posenet, shipped.meshnet)
    hierarchy = coarsen(body.edges, body.num_vertices, LEVELS)
    channels = ORIGINAL.feature_channels + 3
    meshnet: nn.Module
    with seeded():
        if name == "full":
            meshnet = FullMeshNet(JOINTS, channels, hierarchy, rescaling="legacy")
        elif name == "ChebConv":
            from tools.benchmark_chebconv import ChebConvMeshNet

            meshnet = ChebConvMeshNet(JOINTS, channels, hierarchy)
        else:
            from tools.original import OriginalMeshNet

            meshnet = OriginalMeshNet(JOINTS, channels, hierarchy, rescaling="legacy")
        return LifterAndMesh(ORIGINAL, build_lifter(ORIGINAL), meshnet).to(device)


def poses(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random joints in a picture, all known: (B, 19, 2) px, (B, 19)."""
    with seeded():
        return torch.rand(size, len(JOINTS), 2).to(device) * 200, torch.ones(size, len(JOINTS), device=device)


def matrix_product(device: torch.device) -> tuple[float, Work]:
    """Billions of operations of one float32 product, and the product."""
    with seeded():
        a, b = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE).to(device) for _ in range(2))
    return 2 * _MATRIX_SIDE**3 / 1e9, partial(torch.mm, a, b)


def bench_machine(setup: Setup) -> Findings:
    """The machine's own limits: matrix products and copies in float32."""
    with seeded():
        a, b = (torch.randn(2048, 2048).to(setup.device) for _ in range(2))
    big, target = (torch.empty(64 * 2**20, device=setup.device) for _ in range(2))
    products = setup.rates("GFLOP/s", {"matrix product 2048^3": (2 * 2048**3 / 1e9, lambda: a @ b)})
    copies = setup.rates("GB/s", {"copy 256 MB": (2 * big.numel() * 4 / 1e9, lambda: target.copy_(big))})
    return Findings(products + copies)


def bench_networks(setup: Setup) -> Findings:
    """Lifters, mesh networks and both together, forward, at batch 1, 8 and 64."""
    from mesh.body import load_body

    body = load_body()
    models = {name: lifter_and_mesh(name, body, setup.device).eval() for name in MESH_NETWORKS}
    found = Findings()
    with torch.inference_mode():
        for size in (1, 8) if setup.quick else (1, 8, 64):
            found.add(_lifters(setup, models, size))
            found.add(_mesh_networks(setup, models, size))
        found.add(_pairs(setup, models))
    return found


def _lifters(setup: Setup, models: dict[str, LifterAndMesh], size: int) -> Findings:
    ours, original = f"lifter, batch {size}", f"lifter, original, batch {size}"
    contenders = {
        row: partial(models[name].posenet, models[name].config.see(*poses(size, setup.device)).features)
        for row, name in ((ours, "default"), (original, "original"))
    }
    return Findings(setup.per_unit("ms/person", contenders, scale=1e3 / size), [(ours, original)])


def _mesh_networks(setup: Setup, models: dict[str, LifterAndMesh], size: int) -> Findings:
    """Times of all, and of ours the rate of their matrix products beside the machine's, measured in between."""
    names = {f"mesh network, {name}, batch {size}": name for name in models}
    contenders: dict[str, Work] = {}
    for row, name in names.items():
        features = models[name].config.see(*poses(size, setup.device)).features
        with seeded():  # joints in one place or on one line have no trunk to see them from
            joints = torch.rand(size, len(JOINTS), 3).to(setup.device) - 0.5
        contenders[row] = partial(models[name].meshnet, features, joints)
    billions, product = matrix_product(setup.device)
    limit = f"matrix product {_MATRIX_SIDE}^3, meanwhile, batch {size}"
    times = setup.interleaved({**contenders, limit: product})
    rows = [setup.summary(row, "ms/person", [1e3 * t / size for t in times[row]]) for row in names]
    rows.append(setup.summary(limit, "GFLOP/s", [billions / t for t in times[limit]]))
    pairs = []
    for row, name in names.items():
        if name in ("default", "full"):
            rows.append(_arithmetic(setup, row, contenders[row], times[row]))
            pairs += [(row, other) for other in names if names[other] in ("ChebConv", "original")]
            pairs.append((rows[-1].name, limit))
    return Findings(rows, pairs)


def _arithmetic(setup: Setup, row: str, work: Work, times: list[float]) -> Measurement:
    """Operations of the matrix products that a network consists of, per second of all its time."""
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    billions = counter.get_total_flops() / 1e9
    return setup.summary(f"{row}, its matrix products", "GFLOP/s", [billions / t for t in times])


def _pairs(setup: Setup, models: dict[str, LifterAndMesh]) -> Findings:
    """Lifter and mesh network of one person, and on a GPU the same recorded as a graph of kernels."""
    inputs = poses(1, setup.device)
    names = {f"lifter and mesh network, {name}, batch 1": name for name in models}
    contenders: dict[str, Work] = {row: partial(models[name], *inputs) for row, name in names.items()}
    if setup.device.type == "cuda":
        contenders["lifter and mesh network, default, batch 1, CUDA graph"] = cuda_graph(
            partial(models["default"], *inputs)
        )
    rows = setup.per_unit("ms/person", contenders, scale=1e3)
    original = "lifter and mesh network, original, batch 1"
    return Findings(rows, [(row.name, original) for row in rows if row.name != original])


def cuda_graph(work: Work) -> Work:
    """The kernels of `work` recorded once, to be started again all together."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what allocates or chooses algorithms at first use must not be recorded
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
