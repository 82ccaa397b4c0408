from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.draws import step_generator
from data.loading import TrainingBatches
from data.poses import PoseFile
from data.synthesis import SynthesisConfig, Synthesiser
from mesh.body import load_body
from mesh.samples import Batch


@pytest.fixture(scope="module")
def synthesiser() -> Synthesiser:
    g = torch.Generator().manual_seed(0)
    poses = torch.nn.functional.normalize(torch.randn(10, 24, 4, generator=g) * 0.2 + torch.eye(4)[0], dim=-1)
    return Synthesiser(PoseFile(quaternions=poses, name="ten"), load_body(), SynthesisConfig())


def ids(pieces: list[Batch]) -> list[int]:
    return [i for piece in pieces for i in piece.ids.tolist()]


def same(first: Batch, second: Batch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values())
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def test_each_pose_comes_once_an_epoch_however_many_share_the_batch(synthesiser) -> None:
    whole = TrainingBatches(synthesiser, seed=1, batch_size=5)
    expected = [ids(whole[step]) for step in range(4)]
    assert sorted(expected[0] + expected[1]) == sorted(expected[2] + expected[3]) == list(range(10))
    assert expected[:2] != expected[2:]
    ranks = [TrainingBatches(synthesiser, seed=1, batch_size=5, rank=r, world_size=2, accumulate=2) for r in (0, 1)]
    for step in range(4):
        assert [i for rank in ranks for i in ids(rank[step])] == expected[step]
        assert [len(piece) for rank in ranks for piece in rank[step]] == [1, 1, 1, 2]


def test_a_piece_holds_the_very_rows_of_the_whole_batch(synthesiser) -> None:
    whole = TrainingBatches(synthesiser, seed=1, batch_size=6)[3][0]
    second = TrainingBatches(synthesiser, seed=1, batch_size=6, rank=1, world_size=2)[3][0]
    torch.testing.assert_close(second.keypoints_px, whole.keypoints_px[3:], atol=1e-3, rtol=1e-5)
    assert torch.equal(second.confidence, whole.confidence[3:])


def test_a_resumed_run_goes_on_in_the_order_even_with_another_batch_size(synthesiser) -> None:
    before = TrainingBatches(synthesiser, seed=1, batch_size=4)
    after = TrainingBatches(synthesiser, seed=1, batch_size=3, begun=(2, 8))
    seen = [*ids(before[0]), *ids(before[1]), *ids(after[2]), *ids(after[3])]
    one_by_one = TrainingBatches(synthesiser, seed=1, batch_size=1)
    assert seen == [i for step in range(14) for i in ids(one_by_one[step])]


def test_a_batch_too_small_to_cut_is_refused(synthesiser) -> None:
    with pytest.raises(ValueError, match="cannot be cut into 4 pieces"):
        TrainingBatches(synthesiser, seed=1, batch_size=3, accumulate=2, world_size=2)


def test_steps_and_streams_draw_differently() -> None:
    draws = {
        torch.rand(1, generator=step_generator(seed, step, stream=stream)).item()
        for seed in (0, 1) for step in (0, 1, 2**32) for stream in (0, 1)
    }  # fmt: skip
    assert len(draws) == 12


def test_workers_make_the_same_batches_in_the_same_order(synthesiser) -> None:
    batches = TrainingBatches(synthesiser, seed=1, batch_size=4)
    made = list(batches.stream(3, 9, workers=2))
    expected = list(batches.stream(3, 9))
    assert len(made) == len(expected) == 6
    assert all(same(a, b) for x, y in zip(made, expected) for a, b in zip(x, y))


def test_the_source_decides_how_long_an_epoch_is(synthesiser) -> None:
    longer = PoseFile(quaternions=synthesiser.source.quaternions.repeat(2, 1, 1), name="twenty")
    other = Synthesiser(longer, load_body(), replace(SynthesisConfig(), mirror=0.0))
    batches = TrainingBatches(other, seed=1, batch_size=20)
    assert sorted(ids(batches[0])) == list(range(20))
