"""Checksums see every change, and nothing else."""

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.fingerprint import Kept, checksum, fingerprint, memory  # noqa: E402

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def make(dtype, shape=(37, 11), seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50
    return (values > 0) if dtype == torch.bool else values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_single_change_is_seen(dtype):
    values = make(dtype)
    before = int(fingerprint(values))
    assert int(fingerprint(values.clone())) == before
    for index in range(values.numel()):
        other = values.clone()
        flat = other.view(-1)
        flat[index] = ~flat[index] if dtype == torch.bool else flat[index] + 1
        assert torch.equal(other, values) == (int(fingerprint(other)) == before)


def test_a_change_of_sign_of_zero_and_of_one_bit_is_seen():
    values = torch.zeros(1000)
    other = values.clone()
    other[417] = -0.0
    assert int(fingerprint(values)) != int(fingerprint(other))


@pytest.mark.parametrize("distance", (1, 4, 2**16, 2**17, 2**17 + 4, 2**18, 2**19, 2**20))
def test_an_exchange_of_two_elements_is_seen(distance):
    """Also across chunks, and where few bits differ."""
    values = torch.zeros(2**20 + 8, dtype=torch.bfloat16)
    values[0] = 1.0
    other = torch.zeros_like(values)
    other[distance] = 1.0
    assert int(fingerprint(values)) != int(fingerprint(other))


def test_no_collision_among_many_permutations():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(64, generator=generator).bfloat16()
    sums = {int(fingerprint(values[torch.randperm(64, generator=generator)])) for _ in range(3000)}
    assert len(sums) == 3000


def test_slices_and_transposes_have_a_checksum_of_their_own_values():
    base = make(torch.float32, (64, 48))
    for view in (base.t(), base[:, 3:17], base[5], base[::2, 1::3]):
        before = int(fingerprint(view))
        base_copy = base.clone()
        view[..., 2] += 1
        assert int(fingerprint(view)) != before
        base.copy_(base_copy)
        assert int(fingerprint(view)) == before


def test_rounded_to_the_same_dtype_copies_agree():
    values = make(torch.float32, (513, 7))
    half = values.bfloat16()
    assert int(fingerprint(values, torch.bfloat16)) == int(fingerprint(half, torch.bfloat16))
    assert int(fingerprint(values)) != int(fingerprint(half.float()))


def test_what_has_no_memory_has_no_checksum():
    assert checksum(torch.empty(3, 4, device="meta")) is None
    assert checksum(torch.empty(0)) is None
    assert memory(torch.empty(3, device="meta")) == frozenset()


def changed(kept, tensors, everything=True):
    seen = kept.changed(tensors, everything=everything)
    return None if seen is None else (int(seen[0]), int(seen[1]))


def tensors():
    return {name: torch.nn.Parameter(make(torch.float32, seed=n)) for n, name in enumerate("abc")}


def test_a_write_is_looked_into_at_once_and_a_hidden_one_when_everything_is():
    kept_tensors = tensors()
    kept = Kept(kept_tensors)
    assert changed(kept, kept_tensors) == (0, 0)
    assert changed(kept, kept_tensors, everything=False) is None
    with torch.no_grad():
        kept_tensors["b"][0, 0] += 1
    assert changed(kept, kept_tensors, everything=False) == (1, 2)
    kept_tensors["c"].data[0, 0] += 1
    assert changed(kept, kept_tensors, everything=False) is None
    assert changed(kept, kept_tensors) == (2, 3)


def test_writing_the_same_values_and_moving_them_is_no_change():
    kept_tensors = tensors()
    kept = Kept(kept_tensors)
    with torch.no_grad():
        kept_tensors["a"].copy_(kept_tensors["a"].clone())
    kept_tensors["b"].data = kept_tensors["b"].data.clone()
    assert changed(kept, kept_tensors, everything=False) == (0, 0)


def test_a_model_that_is_moved_again_and_again_is_not_looked_at_each_time():
    kept_tensors = tensors()
    kept = Kept(kept_tensors)
    looked = 0
    old = []
    for _ in range(8):
        old.append(kept_tensors["a"].data)
        kept_tensors["a"].data = kept_tensors["a"].data.clone()
        looked += changed(kept, kept_tensors, everything=False) is not None
    assert looked == Kept.MOVES
    with torch.no_grad():
        kept_tensors["a"].add_(1)
    assert changed(kept, kept_tensors, everything=False) == (1, 1)


def test_shards_are_compared_with_shards_and_whole_parameters_with_whole_ones():
    """As FSDP2 holds them by turns, the whole ones in lower precision."""
    whole = make(torch.float32, seed=4)
    shard, full = {"a": whole[:5]}, {"a": whole.bfloat16()}
    kept = Kept(shard)
    assert changed(kept, full) is None
    assert changed(kept, shard) == (0, 0)
    assert changed(kept, full) == (0, 0)
    assert changed(kept, {"a": full["a"] + 1}) == (1, 1)


def test_a_restart_with_other_weights_is_a_change_and_with_another_dtype_is_not_compared():
    state = Kept(tensors()).state_dict()
    same = tensors()
    kept = Kept(same)
    kept.load_state_dict(state)
    assert changed(kept, same) == (0, 0)
    other = tensors()
    other["a"].data += 1
    kept = Kept(other)
    kept.load_state_dict(state)
    assert changed(kept, other) == (1, 1)
    half = {name: torch.nn.Parameter(value.bfloat16()) for name, value in other.items()}
    kept = Kept(half)
    kept.load_state_dict(state)
    assert changed(kept, half) == (0, 0)
