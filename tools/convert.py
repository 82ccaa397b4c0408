"""Turn the official files of a dataset into records, once; everything else in the program reads records."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import types
import typing
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.errors import InputError
from tools import command

if TYPE_CHECKING:
    from data.records import Records

READERS = {
    "pw3d": "3DPW: official sequence files, or the json files that Pose2Mesh distributes",
    "human36m": "Human3.6M as annotated for Pose2Mesh and integral regression",
    "coco": "COCO person keypoints, with SMPLify parameters",
    "muco": "MuCo-3DHP",
    "mpii": "MPII Human Pose",
    "amass": "AMASS: *_poses.npz and *_stageii.npz",
    "cmu": "CMU motion capture: ASF/AMC and BVH",
    "poses": "one .npz of SMPL joint rotations",
}

EXAMPLES = """\
examples:
  python tools/convert.py pw3d --root 3DPW --out records/pw3d_validation --split validation
  python tools/convert.py amass --root AMASS --out records/amass --rate 10
  python tools/convert.py amass --help       the options of one dataset

A conversion that was stopped goes on where it was when it is called again in the same way."""


def main(argv: Sequence[str] | None = None) -> int:
    """Choose the reader, parse its options, convert, report."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        _overview().parse_args(words[:1])  # ends here: help, or what is wrong
    reader = _reader(words[0])
    args = vars(_parser(words[0], reader).parse_args(words[1:]))
    root, out, split, quiet = args.pop("root"), args.pop("out"), args.pop("split"), args.pop("quiet")
    _check_folders(root, out)
    with _Bar(enabled=not quiet and sys.stderr.isatty()) as progress:
        records = reader.convert(root, out, split=split, progress=progress, **args)
    _report(records)
    return 0


def _overview() -> argparse.ArgumentParser:
    """What is said before a dataset is chosen."""
    datasets = "\n".join(["datasets:", *(f"  {name:10}{text}" for name, text in READERS.items())])
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"{datasets}\n\n{EXAMPLES}",
        usage="%(prog)s DATASET --root DIR --out DIR [--split NAME] [options of the dataset]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="which reader; DATASET --help lists its options")
    return parser


def _reader(name: str) -> types.ModuleType:
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"no reader for dataset {name!r}{hint} Known: {', '.join(READERS)}")
    return importlib.import_module(f"data.readers.{name}")


def _options_class(reader: types.ModuleType) -> Any:
    """The reader's own dataclass of options, if it has one."""
    for name, value in vars(reader).items():
        if name.endswith("Options") and is_dataclass(value) and value.__module__ == reader.__name__:
            return value
    return None


def _option_fields(options: Any) -> dict[str, tuple[Any, Any]]:
    """Option name -> (type, default)."""
    if options is None:
        return {}
    hints = typing.get_type_hints(options)
    return {field.name: (hints[field.name], _default(field)) for field in fields(options)}


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _parser(name: str, reader: types.ModuleType) -> argparse.ArgumentParser:
    options = _options_class(reader)
    about = [
        READERS[name],
        reader.__doc__ or "",
        "" if options is None else f"what the options mean:\n  {_own_docstring(options)}",
    ]
    parser = argparse.ArgumentParser(
        prog=f"convert.py {name}",
        description="\n\n".join(text.strip() for text in about if text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="the dataset: its folder, or the file of `poses`")
    parser.add_argument("--out", type=Path, required=True, help="the records folder to make")
    parser.add_argument("--split", default="train", help="which part of the dataset (default: train)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    for option, (kind, default) in _option_fields(options).items():
        flag = "--" + option.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, default=default, help=_default_text(default), **_argument(kind))
    return parser


def _own_docstring(options: Any) -> str:
    """What was written about the options; a dataclass without a docstring gets its signature for one."""
    text = options.__doc__ or ""
    return "" if text.startswith(f"{options.__name__}(") else text.strip()


def _default_text(default: Any) -> str:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return "(default: none)" if shown in (None, "") else f"(default: {shown})"


def _argument(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of this type: number, text, path, choice, several of them, or none of them."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (only,) = [part for part in inner if part is not type(None)]
        return _argument(only)
    if origin is typing.Literal:
        return {"choices": inner, "type": type(inner[0])}
    if origin is tuple:
        return {**_argument(inner[0]), "nargs": "+", "action": _AsTuple}
    return {"type": kind}


class _AsTuple(argparse.Action):
    """Several values as the tuple that the option's type names."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, tuple(values))


def _check_folders(root: Path, out: Path) -> None:
    """Nothing is ever written into a dataset."""
    if not root.exists():
        raise InputError(f"--root {root}: no such file or folder")
    if root.is_dir() and (out.resolve() == root.resolve() or root.resolve() in out.resolve().parents):
        raise InputError(f"--out {out} lies in the dataset {root}; choose a folder outside it")


class _Bar(AbstractContextManager["_Bar"]):
    """A progress bar on stderr, or nothing; called with (done, total, next)."""

    def __init__(self, *, enabled: bool) -> None:
        self._bar: Any = None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(file=sys.stderr, dynamic_ncols=True, leave=False)

    def __call__(self, done: int, total: int, text: str) -> None:
        if self._bar is not None:
            self._bar.total, self._bar.n = total, done
            self._bar.set_description(text[-40:])

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _report(records: Records) -> None:
    info = records.info
    print(f"{records.path}: {info.count} rows of {info.source}, split {info.split}")
    print(f"  columns: {', '.join(info.columns)}")
    if "mesh_valid" in records:
        print(f"  with a mesh: {int(records['mesh_valid'].sum())}")
    for rule, rows in info.dropped.items():
        print(f"  dropped, {rule}: {rows}")
    print(f"  licence: {info.licence}")


if __name__ == "__main__":
    sys.exit(command.run(main))
