"""`meshrecovery COMMAND ...`: the same scripts as one installed command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tools import command

COMMANDS = {
    "recover": "meshes from photos or 2D keypoints",
    "train-posenet": "train the lifter",
    "train-meshnet": "train the mesh network",
    "train-labeling": "train the network that tells left from right",
    "train-uncertainty": "train the network that tells how far off a mesh is",
    "evaluate": "measure trained weights",
    "measure-detector": "measure the 2D detector on rendered people",
    "robustness": "check the recovery on pictures without any truth",
    "multiview": "measure single views of a person against several cameras",
    "benchmark": "measure speed and memory on this machine",
    "fetch-detector": "get the 2D detector's files",
    "convert": "make records of a dataset's official files",
    "convert-body": "make a clean .npz of an SMPL model",
    "fit-pose-prior": "fit the pose prior to a pose file",
    "evolve": "make more poses of a pose file by evolution",
    "ablate": "train and compare the rows of a table",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named."""
    return command.run(_hand_over, argv)


def _hand_over(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help") or words[0] not in COMMANDS:
        wanted = bool(words) and words[0] in ("-h", "--help")
        lines = [f"  {name:19}{text}" for name, text in COMMANDS.items()]
        usage = "\n".join(["usage: meshrecovery COMMAND ...   (COMMAND --help explains each)", *lines])
        print(usage, file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    module = importlib.import_module(f"tools.{words[0].replace('-', '_')}")
    sys.argv[0] = f"meshrecovery {words[0]}"
    code: int = module.main(words[1:])
    return code
