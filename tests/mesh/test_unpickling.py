"""What a hostile, damaged or merely odd pickle can do: nothing but be refused in one clear line."""

import copyreg
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import InputError
from mesh.pickles import read_pickle
from mesh.unpickling import DAMAGED, Placeholder, Refused, unpickle

CH = b"cchumpy.ch\nCh\n"
NDARRAY = b"cnumpy\nndarray\n"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n" + NDARRAY + b"K\x00\x85U\x01b\x87R"
HASH_BOMB = b")" + b"2\x86" * 100  # ((((), ()), ((), ())), ...): hashing it takes 2**100 steps


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(name: bytes, *arguments: bytes) -> bytes:
    return b"c" + name + b"\n(" + b"".join(arguments) + b"tR"


def dtype(code: bytes, state: bytes = b"") -> bytes:
    return call(b"numpy\ndtype", b"U" + bytes([len(code)]) + code, b"K\x00", b"K\x01") + state


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    """An array as a pickle program, `shape` and `kind` and `data` being programs as well."""
    return EMPTY_ARRAY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def refusal(content: bytes, folder: Path) -> str:
    """What the user reads when the pickle is refused."""
    path = folder / "evil.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert "evil.pkl" in message and message.isprintable()
    return message


@pytest.mark.parametrize("name", ["posix.system", "os.system", "subprocess.getoutput", "os.popen", "pty.spawn"])
def test_a_shell_command_is_refused_by_name_and_not_run(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    program = call(f"{module}\n{function}".encode(), text(f"touch {tmp_path}/canary")) + b"."
    assert f"{name} is not allowed" in refusal(program, tmp_path)
    assert not (tmp_path / "canary").exists()


def test_the_plain_unpickler_would_have_run_the_command(tmp_path: Path) -> None:
    pickle.loads(call(b"os\nsystem", text(f"touch {tmp_path}/canary")) + b".")
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "compile", "open"])
def test_builtin_functions_are_refused_in_both_spellings(module: str, name: str, tmp_path: Path) -> None:
    program = call(f"{module}\n{name}".encode(), text(f"open({str(tmp_path / 'canary')!r}, 'w')")) + b"."
    assert f"builtins.{name} is not allowed" in refusal(program, tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name",
    [
        "numpy.load", "numpy.memmap", "numpy.f2py.compile", "numpy.core.multiarray.fromfile", "operator.attrgetter",
        "numpy.testing._private.utils.runstring", "functools.partial", "importlib.import_module", "copyreg.__newobj__",
        "copy_reg.add_extension", "codecs.decode", "scipy.sparse.csc.np.load", "xchumpy.Ch", "builtins.object.x",
    ],
)  # fmt: skip
def test_other_functions_of_allowed_packages_are_refused(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    assert "is not allowed" in refusal(call(f"{module}\n{function}".encode(), text("x")) + b".", tmp_path)


@pytest.mark.parametrize("stack_global", [b"\x8c\x05posix\x8c\x06system\x93", b"\x8c\x02os\x8c\x0dpath.os.popen\x93"])
def test_names_given_as_strings_are_refused_as_well(stack_global: bytes, tmp_path: Path) -> None:
    assert "is not allowed" in refusal(b"\x80\x04" + stack_global + b"\x8c\x02id\x85R.", tmp_path)


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (call(b"chumpy.ch\nCh", text("id")), "chumpy.ch.Ch"),
        (call(b"numpy\nndarray", b"K\x09"), "numpy.ndarray"),
        (call(b"builtins\nobject"), "builtins.object"),
        (text("print") + b"(tR", "str"),
        (call(b"_codecs\nencode", text("x"), text("rot13")), "rot13"),
        (call(b"copyreg\n_reconstructor", NDARRAY, b"cbuiltins\nobject\n", b"N"), "_reconstructor"),
        (call(b"copyreg\n_reconstructor", CH, b"cbuiltins\nset\n", b"N"), "_reconstructor"),
        (call(b"copyreg\n_reconstructor", CH, b"cbuiltins\nobject\n", text("x")), "_reconstructor"),
        (NDARRAY + b")\x81", "new object"),
        (CH + b"K\x01\x85\x81", "new object"),
        (call(b"numpy.core.multiarray\n_reconstruct", CH, b"K\x00\x85", text("b")), "another class"),
        (CH + b")}\x92", "NEWOBJ_EX"),
        (b"(ichumpy.ch\nCh\n", "INST"),
        (b"(" + CH + b"o", "OBJ"),
        (b"Pid\n", "PERSID"),
        (text("id") + b"Q", "BINPERSID"),
        (b"\x97", "NEXT_BUFFER"),
    ],
)
def test_no_instruction_calls_or_builds_anything_else(program: bytes, word: str, tmp_path: Path) -> None:
    message = refusal(b"\x80\x02" + program + b".", tmp_path)
    assert word in message and "not allowed" in message


def test_a_registered_extension_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg._extension_cache, 7, subprocess.getoutput)  # type: ignore[attr-defined]
    program = b"\x82\x07" + text(f"touch {tmp_path}/canary") + b"\x85R."
    assert "EXT1 is not allowed" in refusal(program, tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("target", [b"cnumpy.core.multiarray\nscalar\n", NDARRAY, CH, b"]", b"}", text("x"), b"K\x05"])
def test_a_state_can_be_set_on_placeholders_arrays_and_types_only(target: bytes, tmp_path: Path) -> None:
    state = b"}" + text("__code__") + b"Ns"
    assert "setting the state" in refusal(target + state + b"b.", tmp_path)
    assert "setting the state" in refusal(target + b"N" + state + b"\x86b.", tmp_path)


def test_a_hostile_placeholder_state_stays_data() -> None:
    state = b"}" + text("__class__") + text("x") + b"s" + text("__setstate__") + b"cbuiltins\nobject\n" + b"s"
    placeholder = unpickle(CH + b")\x81" + state + b"b.")
    assert type(placeholder) is Placeholder and placeholder.origin == "chumpy.ch.Ch"
    assert set(placeholder.state) == {"__class__", "__setstate__"} and "__setstate__" not in vars(placeholder)
    with pytest.raises(Refused, match="setting the state"):
        unpickle(CH + b")\x81N" + state + b"\x86b.")


FORGED_FLAGS = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # "objects that are plain bytes"
RECORD = b"(K\x03U\x01|N" + text("a") + b"\x85}" + text("a") + dtype(b"O8") + b"K\x00\x86sK\x08K\x01K\x00tb"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (array(b"K\x01\x85", dtype(b"O8", FORGED_FLAGS), b"U\x08AAAAAAAA"), "object array data of type str"),
        (array(b"K\x01\x85", dtype(b"O8"), b"U\x01A"), "object array data of type str"),
        (array(b"K\x01\x85", dtype(b"f8", RECORD), b"U\x08AAAAAAAA"), "record type"),
        (array(b"K\x01\x85", dtype(b"V8"), b"U\x08AAAAAAAA"), "numpy type V8"),
        (array(b"K\x01\x85", dtype(b"i4,O8"), b"U\x0cAAAAAAAAAAAA"), "numpy type i4,O8"),
        (array(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85", dtype(b"S0"), b"U\x00"), "zero size"),
        (array(b"K\x02\x85", dtype(b"f8"), b"U\x08AAAAAAAA"), "data for 1 entries"),
        (array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", dtype(b"f8"), b"U\x08AAAAAAAA"), "negative or absurd size"),
        (array(b"\x8a\x08" + b"\0" * 5 + b"\1\0\0K\x00\x86", dtype(b"f8"), b"U\x00"), "negative or absurd size"),
        (array(b"](K\x01e", dtype(b"f8"), b"U\x08AAAAAAAA"), "no tuple of integers"),
        (array(b"K\x01\x85", NDARRAY, b"U\x08AAAAAAAA"), "forged type"),
        (array(b"K\x01\x85", EMPTY_ARRAY, b"U\x08AAAAAAAA"), "forged type"),
        (array(b"K\x01\x85", dtype(b"f8"), b"K\x08"), "array data of type int"),
        (EMPTY_ARRAY + b"}" + text("__array_interface__") + b"Nsb", "damaged"),
        (call(b"numpy.core.multiarray\nscalar", dtype(b"O8"), b"U\x08AAAAAAAA"), "object array data of type str"),
        (call(b"numpy.core.multiarray\nscalar", dtype(b"f8"), b"U\x04AAAA"), "data for 0 entries"),
        (
            call(b"numpy._core.numeric\n_frombuffer", EMPTY_ARRAY, dtype(b"f8"), b"K\x00\x85", text("C")),
            "array data of type ndarray",
        ),
    ],
)
def test_a_forged_array_is_refused_before_numpy_sees_it(program: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(program + b".", tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        b"}" + HASH_BOMB + b"Ns",
        b"}(" + HASH_BOMB + b"Nu",
        b"(" + HASH_BOMB + b"Nd",
        b"\x8f(" + HASH_BOMB + b"\x90",
        b"(" + HASH_BOMB + b"\x91",
        call(b"__builtin__\nset", b"](" + HASH_BOMB + b"e"),
        call(b"collections\nOrderedDict", b"](" + HASH_BOMB + b"N\x86e"),
    ],
)
def test_a_key_that_takes_forever_to_hash_is_refused(program: bytes, tmp_path: Path) -> None:
    assert "tuple as dict key or set member" in refusal(program + b".", tmp_path)


def test_assigning_into_an_array_is_refused(tmp_path: Path) -> None:
    bomb = b"]q\x000](h\x00h\x00e"  # numpy would walk nested lists to find their shape
    assert "setting items of ndarray" in refusal(EMPTY_ARRAY + b"K\x00" + bomb + b"s.", tmp_path)


@pytest.mark.parametrize(
    "again",
    [
        call(b"_codecs\nencode", b"h\x00", text("latin1")),
        array(b"M\x00\xc0\x85", dtype(b"u1"), b"h\x00"),
        call(b"numpy.core.multiarray\nscalar", dtype(b"S49152"), b"h\x00"),
    ],
)
def test_copying_one_big_item_again_and_again_is_refused(again: bytes, tmp_path: Path) -> None:
    big = b"T" + struct.pack("<I", 0xC000) + b"a" * 0xC000 + b"q\x00"
    unpickle(b"](" + big + again + b"e.")
    assert "far more than the file's size" in refusal(b"](" + big + again * 50 + b"e.", tmp_path)


@pytest.mark.parametrize("code", [b"\x96", b"\x8e", b"\x8d", b"\x95"])
def test_a_claimed_size_is_not_allocated(code: bytes, tmp_path: Path) -> None:
    refusal(b"\x80\x05" + code + struct.pack("<Q", 2**45) + b"abc.", tmp_path)


def test_a_huge_memo_index_costs_nothing() -> None:
    assert unpickle(b"K\x05r\xf0\xff\xff\x7f.") == 5


def test_very_deep_nesting_neither_crashes_nor_overflows(tmp_path: Path) -> None:
    code = (
        "from mesh.unpickling import unpickle\n"
        "deep = unpickle(b']' * 100_000 + b'a' * 99_999 + b'.')\n"
        "placeholder = b'cchumpy.ch\\nCh\\n)\\x81}X\\x01\\x00\\x00\\x00x'\n"
        "deep = unpickle(placeholder * 20_000 + b'N' + b'sb' * 20_000 + b'.')\n"
        "del deep\n"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_name_with_control_characters_is_shown_in_one_printable_line(tmp_path: Path) -> None:
    message = refusal(b"\x80\x04" + text("os\n\x1b[2J") + text("system" * 1000) + b"\x93.", tmp_path)
    assert r"os\n\x1b[2J.system" in message and len(message) < 300


VALID = pickle.dumps({"a": np.arange(3.0), "b": [np.float32(2), {"c": (1, 2.5, "é", b"\xff")}], "d": {1, 2}}, 2)


@pytest.mark.parametrize("length", [n for n in range(0, len(VALID), 7) if VALID[:n][-1:] != b"."])
def test_a_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    assert "cut short" in refusal(VALID[:length], tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"J\x01.", b"# a text file\n", b"<html>", b"PK\x03\x04", b"\x89PNG\r\n", b"Hello.", b"\x80\x63."]
)
def test_a_file_that_is_no_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "no pickle file" in refusal(content, tmp_path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pkl"):
        with pytest.raises(InputError, match="cannot read"):
            read_pickle(path)


@given(at=st.integers(0, len(VALID) - 1), value=st.integers(0, 255), length=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_any_damage_is_either_read_or_refused(at: int, value: int, length: int) -> None:
    try:
        unpickle(VALID[:at] + bytes([value]) + VALID[at + length :])
    except (Refused, *DAMAGED):
        pass
