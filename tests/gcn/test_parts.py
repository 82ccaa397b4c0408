from __future__ import annotations

from gcn.parts import HEAD, find_limb
from mesh.joints import COCO19, OPENPOSE25


def test_a_limb_may_branch() -> None:
    leg = find_limb(OPENPOSE25, "left_hip", "left_knee")
    names = [OPENPOSE25.names[joint].removeprefix("left_") for joint in leg.joints]
    assert names == ["knee", "ankle", "heel", "big_toe", "small_toe"]
    assert [names[parent] if parent >= 0 else "hip" for parent in leg.parents] == [
        "hip", "knee", "ankle", "ankle", "big_toe",
    ]  # fmt: skip


def test_the_head_is_the_face_seen_from_the_neck() -> None:
    head = find_limb(COCO19, *HEAD)
    assert COCO19.names[head.base] == "neck"
    assert [COCO19.names[joint] for joint in head.joints] == [
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    ]  # fmt: skip
    assert head.parents == (-1, 0, 0, 1, 2)
