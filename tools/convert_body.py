"""Turn an SMPL body file into a clean .npz in the layout of the free body."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17
from tools import command

DESCRIPTION = """\
Read an SMPL model (the original .pkl without executing anything in it, or an .npz) and write a clean compressed .npz:
plain arrays only, the first 10 shape coefficients, quick to load.

Original SMPL files hold no COCO and no Human3.6M joint regressor. Training and recovery with such a body need both:
give J_regressor_coco.npy and J_regressor_h36m_correct.npy, which come with the data files of Pose2Mesh and GraphCMR."""

EXAMPLE = """\
example:
  python tools/convert_body.py basicModel_neutral_lbs_10_207_0_v1.0.0.pkl smpl_neutral.npz \\
    --coco-regressor J_regressor_coco.npy --human36m-regressor J_regressor_h36m_correct.npy"""


def main(argv: Sequence[str] | None = None) -> int:
    """Read, check, write."""
    args = _parser().parse_args(argv)
    _check_target(args.output, force=args.force)
    body = load_body(args.input)
    regressors = {
        "coco17": _regressor(args.coco_regressor, body, (len(COCO17), len(COCO19))),
        "human36m17": _regressor(args.human36m_regressor, body, (len(HUMAN36M17),)),
    }
    arrays = _npz_arrays(body, {name: given for name, given in regressors.items() if given is not None})
    _write(args.output, arrays)
    shape = f"{body.num_vertices} vertices, {len(body.faces)} faces, {len(body.parents)} joints"
    lacking = [key for key in ("J_regressor_coco", "J_regressor_h36m") if key not in arrays]
    print(f"wrote {args.output}: {shape}" + (f"; without {' and '.join(lacking)}, see --help" if lacking else ""))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="SMPL model, .pkl or .npz")
    parser.add_argument("output", type=Path, metavar="OUT.npz", help="file to write")
    parser.add_argument("--coco-regressor", type=Path, metavar="FILE.npy", help="(17, V), or (19, V) of which 17 count")
    parser.add_argument("--human36m-regressor", type=Path, metavar="FILE.npy", help="(17, V)")
    parser.add_argument("--force", action="store_true", help="replace an existing OUT.npz")
    return parser


def _check_target(output: Path, *, force: bool) -> None:
    if output.suffix != ".npz":
        raise InputError(f"the output must be named OUT.npz, got {output}")
    if not output.parent.is_dir():
        raise InputError(f"no folder {output.parent} to write {output.name} into; create it first")
    if output.exists() and not force:
        raise InputError(f"{output} exists; give --force to replace it, or another name")


def _regressor(path: Path | None, body: Body, allowed_rows: tuple[int, ...]) -> np.ndarray | None:
    """Weights of the first 17 joints over the vertices, (17, V)."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            weights = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise InputError(f"{path} is no .npy file of numbers; give the .npy file of one joint regressor") from exc
    expected = [(rows, body.num_vertices) for rows in allowed_rows]
    if weights.shape not in expected or weights.dtype.kind not in "biuf":
        wanted = " or ".join(map(str, expected))
        raise InputError(f"{path} must hold numbers of shape {wanted}, got {weights.dtype} of shape {weights.shape}")
    if not np.isfinite(weights).all():
        raise InputError(f"{path} holds NaN or infinity; it is no joint regressor")
    return weights[: min(allowed_rows)]


def _npz_arrays(body: Body, given_regressors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The body under the keys and types of the SMPL file format."""
    arrays: dict[str, np.ndarray] = {
        "v_template": body.template.astype(np.float32),
        "f": body.faces.astype(np.uint32),
        "weights": body.skinning.astype(np.float32),
        "J_regressor": body.joint_regressor.astype(np.float32),
        "kintree_table": np.array([body.parents, range(len(body.parents))], np.int64),
        "shapedirs": body.shape_dirs.astype(np.float32),
        "posedirs": body.pose_dirs.astype(np.float32),
    }
    regressors = {**body.regressors, **given_regressors}
    for key, name in (("J_regressor_coco", "coco17"), ("J_regressor_h36m", "human36m17")):
        if name in regressors:
            arrays[key] = regressors[name].astype(np.float32)
    if body.mirror is not None:
        arrays["mirror"] = body.mirror.astype(np.int32)
    return arrays


def _write(output: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = output.with_suffix(".npz.part")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.replace(output)  # atomic: a killed run leaves the previous file, never half a one
    except OSError as exc:
        raise InputError(f"cannot write {output}: {exc.strerror}") from exc
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(command.run(main))
