"""Reading SMPL models and sequence files, written by any Python, numpy or chumpy, with exactly their values."""

import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from mesh.errors import InputError
from mesh.pickles import SMPL_KEYS, read_pickle, read_smpl_pickle
from mesh.unpickling import Placeholder


def small_model() -> dict[str, Any]:
    """Arrays in the types and memory orders of an original SMPL file; the numbers mean nothing."""
    rng = np.random.default_rng(0)
    regressor = rng.random((4, 12)) * (rng.random((4, 12)) < 0.3)
    return {
        "v_template": rng.normal(size=(12, 3)),
        "f": rng.integers(0, 12, (20, 3)).astype(np.uint32),
        "weights": np.asfortranarray(rng.random((12, 4))),
        "J_regressor": regressor,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1], [0, 1, 2, 3]], np.uint32),
        "shapedirs": rng.normal(size=(12, 3, 5)),
        "posedirs": rng.normal(size=(27, 12, 3)).transpose(1, 2, 0),
        "J": rng.normal(size=(4, 3)).astype(np.float32),
    }


def dump(model: object, path: Path, protocol: int, core: str | None = None) -> Path:
    """Pickle with numpy's inner package under the given name."""
    content = pickle.dumps(model, protocol)
    if core:
        native = np.zeros(0).__reduce__()[0].__module__.removesuffix(".multiarray").encode()
        content = content.replace(b"c" + native, b"c" + core.encode())
    path.write_bytes(content)
    return path


def assert_same(loaded: dict[str, np.ndarray], model: dict[str, Any]) -> None:
    assert set(loaded) == set(model)
    for key, array in loaded.items():
        assert type(array) is np.ndarray and array.dtype == model[key].dtype, key
        np.testing.assert_array_equal(array, model[key], strict=True)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_a_model_of_either_numpy_is_read_exactly(protocol: int, core: str, tmp_path: Path) -> None:
    path = dump(small_model(), tmp_path / "model.pkl", protocol, core)
    assert core.encode() + b".multiarray" in path.read_bytes()
    assert_same(read_smpl_pickle(path), small_model())


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_model_in_a_new_protocol_is_read_exactly(protocol: int, tmp_path: Path) -> None:
    assert_same(read_smpl_pickle(dump(small_model(), tmp_path / "model.pkl", protocol)), small_model())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [scipy.sparse.csc_matrix, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("spelling", ["native", "python2"])
def test_a_sparse_regressor_becomes_dense(protocol: int, kind: Any, spelling: str, tmp_path: Path) -> None:
    model = small_model()
    path = dump({**model, "J_regressor": kind(model["J_regressor"])}, tmp_path / "model.pkl", protocol)
    if spelling == "python2" and protocol < 4:
        content = path.read_bytes().replace(b"sparse._cs", b"sparse.cs")
        assert b"scipy.sparse.cs" in content
        path.write_bytes(content)
    assert_same(read_smpl_pickle(path), model)


@pytest.fixture
def chumpy(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Classes that pickle as chumpy's do; the modules are gone once `forget` was called."""

    def make(module: str, name: str) -> type:
        made = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, made)
        return made

    def forget() -> None:
        for module in ("chumpy", "chumpy.ch", "chumpy.reordering"):
            monkeypatch.delitem(sys.modules, module)

    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    return types.SimpleNamespace(
        Ch=make("chumpy.ch", "Ch"),
        Select=make("chumpy.reordering", "Select"),
        forget=forget,
    )


def with_state(cls: type, **state: object) -> object:
    made = cls()
    made.__dict__.update(state)
    return made


@pytest.mark.parametrize("protocol", range(6))
def test_chumpy_objects_are_read_without_chumpy(protocol: int, chumpy: types.SimpleNamespace, tmp_path: Path) -> None:
    model = small_model()
    all_shapes = np.random.default_rng(1).normal(size=(12, 3, 300))
    first = np.arange(all_shapes.size).reshape(all_shapes.shape)[:, :, :5]
    ch = with_state(chumpy.Ch, x=all_shapes, _dirty_vars={"x"}, _status="undefined", _itr=None)
    chumpy_model = {
        **model,
        "v_template": with_state(chumpy.Ch, x=model["v_template"], _depends_on_deps=OrderedDict(a=1)),
        "shapedirs": with_state(chumpy.Select, a=ch, idxs=first.ravel(), preferred_shape=(12, 3, 5)),
    }
    path = dump(chumpy_model, tmp_path / "model.pkl", protocol)
    chumpy.forget()
    assert_same(read_smpl_pickle(path), {**model, "shapedirs": all_shapes[:, :, :5]})
    assert not any(name.startswith("chumpy") for name in sys.modules)


def test_an_unknown_chumpy_object_is_refused_not_guessed(chumpy: types.SimpleNamespace, tmp_path: Path) -> None:
    model = {**small_model(), "weights": with_state(chumpy.Select, x=np.zeros((12, 4)))}
    path = dump(model, tmp_path / "model.pkl", 2)
    with pytest.raises(InputError, match=r"weights of type chumpy.reordering.Select is not allowed"):
        read_smpl_pickle(path)


def test_a_selection_of_itself_is_refused(chumpy: types.SimpleNamespace, tmp_path: Path) -> None:
    loop = with_state(chumpy.Select, idxs=np.arange(3))
    loop.a = loop  # type: ignore[attr-defined]
    path = dump({**small_model(), "shapedirs": loop}, tmp_path / "model.pkl", 2)
    with pytest.raises(InputError, match="RecursionError"):
        read_smpl_pickle(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_shape": (10**6, 10**6)}, r"sparse J_regressor of shape"),
        ({"_shape": (-4, -12)}, "negative or absurd"),
        ({"indices": np.array([10**6] * 12, np.int32)}, "damaged"),
        ({"indices": np.array([-1] * 12, np.int32)}, "contradictory indices"),
        ({"indices": np.array([0] * 11, np.int32)}, "contradictory indices"),
        ({"indices": np.zeros(12)}, "such indices"),
        ({"indptr": np.array([0] + [10**6] * 12, np.int32)}, "contradictory indices"),
        ({"indptr": np.array([0, 10**6] + [0] * 10 + [12], np.int32)}, "contradictory indices"),
        ({"indptr": np.array([0] * 12 + [12], np.int32)[1:]}, "contradictory indices"),
        ({"indptr": np.array([1, *range(1, 13)])}, "contradictory indices"),
        (
            {"indptr": np.array([0, 2**62, 2**63 - 1, -(2**63), -(2**62)] + [12] * 8)},
            "contradictory indices",  # each step is positive, once it has overflowed
        ),
        (
            {"data": np.zeros(0), "indices": np.zeros(0, np.int32), "indptr": np.array([0, 10**9] + [0] * 11)},
            "contradictory indices",  # scipy's own full check lets this pass and writes to foreign memory
        ),
        ({"data": [1.0] * 12}, "J_regressor of type list"),
    ],
)
def test_a_forged_sparse_matrix_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    matrix = scipy.sparse.csc_matrix(np.tile(np.array([[1.0], [0], [0], [0]]), 12))
    vars(matrix).update(change)
    path = dump({**small_model(), "J_regressor": matrix}, tmp_path / "model.pkl", 2)
    with pytest.raises(InputError, match=reason):
        read_smpl_pickle(path)


@pytest.mark.parametrize("key", SMPL_KEYS)
def test_a_model_without_a_key_is_refused_and_the_key_named(key: str, tmp_path: Path) -> None:
    model = small_model()
    del model[key]
    with pytest.raises(InputError, match=f"lacks {key}"):
        read_smpl_pickle(dump(model, tmp_path / "model.pkl", 2))


@pytest.mark.parametrize("value", [[1.0], "text", None, np.array(["text"]), np.array([None]), {"x": 1}])
def test_a_value_that_is_no_array_of_numbers_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="posedirs of type"):
        read_smpl_pickle(dump({**small_model(), "posedirs": value}, tmp_path / "model.pkl", 2))


@pytest.mark.parametrize("value", [[1, 2], "text", np.zeros(3)])
def test_a_pickle_of_something_else_is_no_model(value: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"holds a {type(value).__name__}; an SMPL model is a dict"):
        read_smpl_pickle(dump(value, tmp_path / "model.pkl", 2))


def python2_text(value: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(value)) + value


def python2_array(array: np.ndarray) -> bytes:
    """The program that Python 2 with numpy 1 writes for an array: its data are a byte string."""
    order = b">" if array.dtype.byteorder == ">" else b"<"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01("
        + b"".join(b"K" + bytes([n]) for n in array.shape)
        + b"tcnumpy\ndtype\nU\x02" + array.dtype.str[1:].encode() + b"K\x00K\x01\x87R(K\x03U\x01" + order
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + python2_text(array.tobytes()) + b"tb"
    )  # fmt: skip


def test_a_sequence_file_of_python_2_is_read_exactly(tmp_path: Path) -> None:
    poses = np.random.default_rng(2).normal(size=(5, 72))
    swapped = np.arange(6).astype(">i4").reshape(2, 3)
    path = tmp_path / "sequence.pkl"
    path.write_bytes(
        b"\x80\x02}(" + python2_text(b"poses") + b"](" + python2_array(poses) + python2_array(poses + 1) + b"e"
        + python2_text(b"swapped") + python2_array(swapped)
        + python2_text(b"genders") + b"](U\x01mU\x01fe" + python2_text(b"sequence") + b"U\x05caf\xe9s"
        + b"U\x04kindc__builtin__\nset\n](K\x01K\x02e\x85R"
        + b"U\x07orderedccollections\nOrderedDict\n]](U\x01aK\x01ea\x85Ru."
    )  # fmt: skip
    loaded = read_pickle(path)
    assert isinstance(loaded, dict)
    np.testing.assert_array_equal(loaded["poses"], [poses, poses + 1])
    np.testing.assert_array_equal(loaded["swapped"], [[0, 1, 2], [3, 4, 5]])
    assert {key: loaded[key] for key in ("genders", "sequence", "kind", "ordered")} == {
        "genders": ["m", "f"],
        "sequence": "cafés",
        "kind": {1, 2},
        "ordered": {"a": 1},
    }


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_arrays_and_scalars_come_back_equal(protocol: int, tmp_path: Path) -> None:
    shared = np.arange(6).reshape(2, 3)
    values: dict[str, Any] = {
        "arrays": [shared, shared, shared[:0], np.array(2.5), shared.T, np.array([True]), np.array(["é", "ab"])],
        "objects": np.array([None, "x", shared], dtype=object),
        "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("é")],
        "plain": (1, -(2**70), 0.1, None, True, "é\n", b"\xff\x00", b"", {"a"}),
        "new": [frozenset({1}), bytearray(b"x")] if protocol == 5 else [],
    }
    loaded: Any = read_pickle(dump(values, tmp_path / "values.pkl", protocol))
    assert loaded["arrays"][0] is loaded["arrays"][1]
    for got, expected in zip(loaded["arrays"] + loaded["scalars"], values["arrays"] + values["scalars"], strict=True):
        assert type(got) is type(expected)
        np.testing.assert_array_equal(got, expected, strict=True)
    assert list(loaded["objects"][:2]) == [None, "x"] and loaded["objects"][2] is loaded["arrays"][0]
    assert (loaded["plain"], loaded["new"]) == (values["plain"], values["new"])


def test_other_objects_stay_inert_placeholders(tmp_path: Path) -> None:
    loaded = read_pickle(dump(scipy.sparse.csc_matrix(np.eye(2)), tmp_path / "sparse.pkl", 2))
    assert isinstance(loaded, Placeholder) and loaded.origin.endswith("csc_matrix")
    np.testing.assert_array_equal(loaded.state["data"], [1, 1])
