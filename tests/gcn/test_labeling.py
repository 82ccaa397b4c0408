from __future__ import annotations

import torch

from gcn.labeling import exchange_labels, exchange_some
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
    mixed, exchanged = exchange_some(features, torch.rand(4000, generator=generator))
    changed = (mixed != features).flatten(1).any(1)
    assert torch.equal(changed, exchanged) and abs(exchanged.float().mean() - 0.5) < 0.03
    whole = (mixed == exchange_labels(features)).flatten(1).all(1)
    assert abs(whole.float().mean() - 0.25) < 0.03


def test_the_given_number_decides_which_labels_are_exchanged(generator: torch.Generator) -> None:
    features = torch.randn(5, 19, 3, generator=generator)
    mixed, exchanged = exchange_some(features, torch.tensor((0.0, 0.2499, 0.25, 0.4999, 0.5)))
    assert exchanged.tolist() == [True, True, True, True, False]
    whole, body_only = exchange_labels(features), exchange_labels(features, face=False)
    assert torch.equal(mixed, torch.cat((whole[:2], body_only[2:4], features[4:])))
