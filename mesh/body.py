"""Body models in the SMPL file format: what a file holds, checked, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from mesh.archives import read_arrays
from mesh.errors import InputError
from mesh.joints import JointSet, joint_set

_REQUIRED = ("v_template", "f", "weights", "J_regressor", "kintree_table", "shapedirs", "posedirs")
_REGRESSOR_KEYS = {"coco17": "J_regressor_coco", "human36m17": "J_regressor_h36m", "smpl24": "J_regressor"}
NUM_SHAPE = 10


@dataclass(frozen=True, kw_only=True)
class Body:
    """An articulated mesh: V vertices, F faces, J joints (SMPL: 24), S shape coefficients.

    Rest pose in metres, y up, facing +z. `template` (V, 3), `faces` (F, 3) counter-clockwise from outside,
    `skinning` (V, J) rows summing to one, `joint_regressor` (J, V), `parents` (J,) with -1 for the root,
    `shape_dirs` (V, 3, S), `pose_dirs` (V, 3, 9 (J - 1)), `regressors` joint-set name -> (joints, V),
    `mirror` (V,) index of the vertex on the other side, where the mesh is symmetric.
    """

    name: str
    template: np.ndarray
    faces: np.ndarray
    skinning: np.ndarray
    joint_regressor: np.ndarray
    parents: tuple[int, ...]
    shape_dirs: np.ndarray
    pose_dirs: np.ndarray
    regressors: Mapping[str, np.ndarray]
    mirror: np.ndarray | None = None

    @property
    def num_vertices(self) -> int:
        return len(self.template)

    @cached_property
    def edges(self) -> np.ndarray:
        """Each edge of the mesh once, (E, 2) with the smaller index first, sorted."""
        pairs = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        return np.unique(np.sort(pairs, axis=1), axis=0)

    def regressor(self, target: JointSet) -> np.ndarray:
        """Matrix that takes vertices to the joints of a set, (J, V); derived joints are means of their parts."""
        for name, matrix in self.regressors.items():
            source = joint_set(name)
            parts = [target.derived.get(n, (n,)) for n in target.names]
            if all(p in source.names for part in parts for p in part):
                return np.stack([matrix[list(source.indices(part))].mean(axis=0) for part in parts])
        raise InputError(
            f"body {self.name} has no regressor for {target.name}; add it with "
            "`python tools/convert_body.py IN OUT.npz --coco-regressor FILE --human36m-regressor FILE`"
        )


def load_body(path: str | Path | None = None) -> Body:
    """The free body that ships, or an SMPL file: `.npz`, or the original `.pkl` read without executing anything."""
    if path is None:
        with resources.as_file(resources.files("mesh") / "assets" / "free_body.npz") as shipped:
            return load_body(shipped)
    path = Path(path)
    if path.suffix == ".pkl":
        from mesh.pickles import read_smpl_pickle

        return _body_from_arrays(read_smpl_pickle(path), name=path.name)
    return _body_from_arrays(read_arrays(path, "an SMPL model as .npz or .pkl"), name=path.name)


def _body_from_arrays(arrays: Mapping[str, np.ndarray], *, name: str) -> Body:
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        raise InputError(f"body {name} lacks {', '.join(missing)}; an SMPL model file has {', '.join(_REQUIRED)}")
    for key in (*_REQUIRED, *(k for k in arrays if k in _REGRESSOR_KEYS.values() or k == "mirror")):
        if arrays[key].dtype.kind not in "fiu" or arrays[key].ndim < 1:
            raise InputError(f"body {name}: {key} must be an array of numbers, got {arrays[key].dtype}")
    template = np.asarray(arrays["v_template"], np.float32)
    num_vertices, num_joints = len(template), arrays["weights"].shape[-1]
    shape_dirs = np.asarray(arrays["shapedirs"], np.float32)[..., :NUM_SHAPE]
    tree = np.asarray(arrays["kintree_table"])
    if tree.ndim != 2 or tree.shape[1] != num_joints:
        raise InputError(f"body {name}: kintree_table must have shape (2, {num_joints}), got {tree.shape}")
    parents = tree[0].astype(np.int64)
    parents[(parents >= num_joints) | (parents < 0)] = -1  # the root's parent is -1, or 2**32 - 1 in original files
    body = Body(
        name=name,
        template=template,
        faces=np.asarray(arrays["f"], np.int64),
        skinning=np.asarray(arrays["weights"], np.float32),
        joint_regressor=np.asarray(arrays["J_regressor"], np.float32),
        parents=tuple(int(p) for p in parents),
        shape_dirs=shape_dirs,
        pose_dirs=np.asarray(arrays["posedirs"], np.float32),
        regressors={
            set_name: np.asarray(arrays[key], np.float32)[: len(joint_set(set_name))]
            for set_name, key in _REGRESSOR_KEYS.items()
            if key in arrays and (set_name != "smpl24" or num_joints == len(joint_set(set_name)))
        },
        mirror=np.asarray(arrays["mirror"], np.int64) if "mirror" in arrays else None,
    )
    shapes = {
        "v_template": (body.template, (num_vertices, 3)),
        "f": (body.faces, (len(body.faces), 3)),
        "weights": (body.skinning, (num_vertices, num_joints)),
        "J_regressor": (body.joint_regressor, (num_joints, num_vertices)),
        "shapedirs": (body.shape_dirs, (num_vertices, 3, shape_dirs.shape[-1])),
        "posedirs": (body.pose_dirs, (num_vertices, 3, 9 * (num_joints - 1))),
    }
    for set_name, matrix in body.regressors.items():
        shapes[_REGRESSOR_KEYS[set_name]] = (matrix, (len(joint_set(set_name)), num_vertices))
    for key, (array, expected) in shapes.items():
        if array.shape != expected:
            raise InputError(f"body {name}: {key} must have shape {expected}, got {array.shape}")
        if not np.isfinite(array).all():
            raise InputError(f"body {name}: {key} holds NaN or infinity")
    if abs(body.skinning.sum(1) - 1).max(initial=0) > 1e-3:
        raise InputError(f"body {name}: the weights of each vertex must add up to 1")
    if body.faces.min(initial=0) < 0 or body.faces.max(initial=0) >= num_vertices:
        raise InputError(f"body {name}: faces name vertices outside 0..{num_vertices - 1}")
    if any(parent >= child for child, parent in enumerate(body.parents)):
        raise InputError(f"body {name}: kintree_table must list every parent before its children")
    return body
