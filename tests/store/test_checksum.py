"""The header of safetensors files, and the seal in it."""

import json

import pytest
import safetensors.torch
import torch

from raybasin.store import checksum

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.int64)}


def sealed():
    plain = safetensors.torch.save(STATE, metadata={"done": "7"})
    return safetensors.torch.save(STATE, metadata={"done": "7", checksum.KEY: checksum.digest(plain)})


def test_the_header_says_what_is_in_the_file():
    metadata, tensors, data = checksum.header(sealed())
    assert metadata["done"] == "7" and set(tensors) == {"a", "b"}
    start, end = tensors["a"]["data_offsets"]
    assert (tensors["a"]["shape"], tensors["a"]["dtype"]) == ([2, 3], "F32")
    assert bytes(data[start:end]) == STATE["a"].numpy().tobytes()
    assert checksum.header(safetensors.torch.save(STATE))[0] == {}


def test_what_was_sealed_is_whole_and_a_flipped_bit_anywhere_is_not():
    whole = sealed()
    checksum.check(whole)
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1
        if broken[place : place + 1].isspace() and whole[place : place + 1].isspace():
            continue  # the space that fills up the header
        with pytest.raises(ValueError, match=r"not a safetensors file|not what was written"):
            checksum.check(bytes(broken))


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"\xff" * 8, b"\x02" + b"\x00" * 7 + b"[]x", b"\x04" + b"\x00" * 7 + b"null",
                b"\x02" + b"\x00" * 7 + b"{", (9).to_bytes(8, "little") + b"[" * 9, b"\x80\x02}q\x00."],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(content):
    with pytest.raises(ValueError, match="safetensors|not what was written"):
        checksum.check(content)
    text = json.dumps({"__metadata__": 3}).encode()
    with pytest.raises(ValueError, match="not a safetensors file"):
        checksum.header(len(text).to_bytes(8, "little") + text)
