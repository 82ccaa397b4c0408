from __future__ import annotations

import torch

from gcn.labeling import exchange_labels, exchange_some
from gcn.trainer import step_generator
from mesh.joints import COCO19


def test_exchanging_swaps_pairs_and_may_leave_the_face() -> None:
    features = torch.arange(19.0)[None, :, None].expand(1, 19, 3)
    names = [COCO19.names[int(i)] for i in exchange_labels(features)[0, :, 0]]
    assert names[COCO19.index("left_wrist")] == "right_wrist" and names[COCO19.index("left_ear")] == "right_ear"
    assert names[COCO19.index("nose")] == "nose" and names[COCO19.index("pelvis")] == "pelvis"
    body_only = [COCO19.names[int(i)] for i in exchange_labels(features, face=False)[0, :, 0]]
    assert body_only[COCO19.index("left_wrist")] == "right_wrist" and body_only[COCO19.index("left_ear")] == "left_ear"
    assert (features == torch.arange(19.0)[None, :, None]).all()


def test_half_of_a_batch_is_exchanged_and_named(generator: torch.Generator) -> None:
    features = torch.randn(4000, 19, 3, generator=generator)
    mixed, exchanged = exchange_some(features, step_generator(0, 0))
    changed = (mixed != features).flatten(1).any(1)
    assert torch.equal(changed, exchanged) and abs(exchanged.float().mean() - 0.5) < 0.03
    whole = (mixed == exchange_labels(features)).flatten(1).all(1)
    assert abs(whole.float().mean() - 0.25) < 0.03
