"""The merge as a Triton program: one tile of a merged tensor, its digest and what it is made of.

It says the same as `eager.py`, operation by operation, and so gives the same bits: whoever launches
it forbids contracting products and sums (`enable_fp_fusion`), and quotients are rounded as IEEE
says. All tensors that are merged alike are merged in one launch, by tables of addresses and numbers
that `fused.py` makes; a program merges 64 KiB of one tensor, which is what a digest is of.
"""

# ruff: noqa: RUF005, SIM108 (the language has neither stars nor such expressions)
import triton
import triton.language as tl

# The numbers and words of an operand in the tables.
NUMBERS, WORDS = 4, 3

BFLOAT16, FLOAT32, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

WEIGHTED, SIZE, RANDOM, RANKED, VOTES = (tl.constexpr(i) for i in range(5))

SUM, ELECT, LARGEST = (tl.constexpr(i) for i in range(3))

_GROUP, _GROUP_BLOCKS = tl.constexpr(128), tl.constexpr(8)  # as in philox.py


@triton.jit
def _pointer(address, CODE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return an address as a pointer to elements of a dtype."""
    if CODE == BFLOAT16:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif CODE == FLOAT16:
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:  # what the compiler must know to load sixteen bytes at once
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _loaded(pointer, at, inside, MASKED: tl.constexpr):
    """Return elements as float32, zeros beyond the end."""
    if MASKED:
        return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    return tl.load(pointer + at).to(tl.float32)


@triton.jit
def _rounded(x, CODE: tl.constexpr):
    """Return float32 rounded to a dtype once, to the nearest and ties to even."""
    if CODE == BFLOAT16:
        return x.to(tl.bfloat16)
    if CODE == FLOAT16:
        return x.to(tl.float16)
    return x


@triton.jit
def _philox(blocks, stream, key0, key1):
    """Return the four words of blocks of Philox4x32-7; see `philox.philox_rounds`."""
    c0, c1 = blocks.to(tl.uint32), (blocks >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0) + stream, tl.zeros_like(c0)
    k0, k1 = key0.to(tl.uint32), key1.to(tl.uint32)
    for _ in tl.static_range(7):
        p0, p1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _draws(start, key0, key1, BLOCK: tl.constexpr):
    """Return the (BLOCK,) draws of `philox.philox` from element `start`, a multiple of 128, on."""
    GROUPS: tl.constexpr = BLOCK // _GROUP
    blocks = start // 16 + tl.arange(0, BLOCK // 16)
    w0, w1, w2, w3 = _philox(blocks, 0, key0, key1)
    # Word w of a group's block 4 t + u holds the bytes from 32 w + 8 u + 4 t on.
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (GROUPS, 2, 4, 4))
    words = tl.reshape(tl.permute(words, (0, 3, 2, 1)), (BLOCK // 4, 1))
    high = tl.reshape((words >> (8 * tl.arange(0, 4))[None, :].to(tl.uint32)) & 0xFF, (BLOCK,))
    # The low byte of a group's draws is the group's own among the bytes of stream 1.
    group = start // _GROUP + tl.arange(0, GROUPS)
    at = group % _GROUP
    block = group // _GROUP * _GROUP_BLOCKS + ((at >> 2) & 1) * 4 + ((at >> 3) & 3)
    w0, w1, w2, w3 = _philox(block, 1, key0, key1)
    word = tl.where(at < 64, tl.where(at < 32, w0, w1), tl.where(at < 96, w2, w3))
    low = (word >> ((at & 3) * 8).to(tl.uint32)) & 0xFF
    low = tl.reshape(tl.broadcast_to(low[:, None], (GROUPS, _GROUP)), (BLOCK,))
    return (high * 256 + low).to(tl.int32)


@triton.jit
def _thinned(
    tau, at, inside, start, numbers, words, BLOCK: tl.constexpr, THIN: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return what is left of a block of a task vector; see `eager._thinned`."""
    if THIN == SIZE:
        size = tl.abs(tau)
        return tau * ((size >= tl.load(numbers + 1)) & (size <= tl.load(numbers + 2))).to(
            tl.float32
        )
    if THIN == RANDOM:
        draws = _draws(start, tl.load(words), tl.load(words + 1), BLOCK)
        return tau * (draws < tl.load(words + 2)).to(tl.float32) * tl.load(numbers + 1)
    if THIN == RANKED:
        draws = _draws(start, tl.load(words), tl.load(words + 1), BLOCK)
        levels = tl.load(words + 2).to(tl.pointer_type(tl.uint8))
        if MASKED:
            level = tl.load(levels + at, mask=inside, other=0)
        else:
            level = tl.load(levels + at)
        chance = tl.load(numbers + 1) + level.to(tl.float32) * tl.load(numbers + 2)
        threshold = tl.minimum(tl.maximum(chance, 0.0), 65536.0).to(tl.int32)
        kept = tau * (draws < threshold).to(tl.float32)
        if tl.load(numbers + 3) != 0.0:
            kept = kept * tl.div_rn(65536.0, tl.maximum(threshold, 1).to(tl.float32))
        return kept
    return tau


@triton.jit
def _block(
    addresses, numbers, words, at, inside, start, BLOCK: tl.constexpr, COUNT: tl.constexpr,
    DTYPES: tl.constexpr, THIN: tl.constexpr, JOIN: tl.constexpr, NORMALIZE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return a block of the merged tensor in float32."""
    total = tl.zeros((BLOCK,), tl.float32)
    if THIN == WEIGHTED:
        for k in tl.static_range(COUNT):
            weight = tl.load(numbers + k * 4)
            if weight != 0.0:  # what has no share is not even read
                pointer = _pointer(tl.load(addresses + k), (DTYPES // 3**k) % 3, ALIGNED)
                total += _loaded(pointer, at, inside, MASKED) * weight
        return total
    base = _pointer(tl.load(addresses), DTYPES % 3, ALIGNED)
    origin = _loaded(base, at, inside, MASKED)
    taus = ()
    for k in tl.static_range(1, COUNT):
        pointer = _pointer(tl.load(addresses + k), (DTYPES // 3**k) % 3, ALIGNED)
        tau = _loaded(pointer, at, inside, MASKED) - origin
        tau = _rounded(tau, DTYPES % 3).to(tl.float32)
        tau = _thinned(tau, at, inside, start, numbers + k * 4, words + k * 3, BLOCK, THIN, MASKED)
        taus = taus + (tau,)
    if THIN == VOTES:
        whole = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(COUNT - 1):
            whole += taus[k]
        votes = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(COUNT - 1):
            # the TALL mask: |tau_i| > threshold_i |sum_j tau_j - tau_i|
            rest = tl.abs(whole - taus[k]) * tl.load(numbers + (k + 1) * 4 + 1)
            votes += tl.where(tl.abs(taus[k]) > rest, 1.0, 0.0)
        agreed = votes >= tl.load(numbers + 1)
    parts = ()
    for k in tl.static_range(COUNT - 1):
        tau = taus[k]
        if THIN == VOTES:
            tau = tau * agreed.to(tl.float32)
        parts = parts + (tau * tl.load(numbers + (k + 1) * 4),)
    if JOIN == LARGEST:
        total = parts[0]
        for k in tl.static_range(1, COUNT - 1):
            total = tl.where(tl.abs(parts[k]) >= tl.abs(total), parts[k], total)
        total = total + 0.0  # no negative zero, as in a sum
    else:
        whole = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(COUNT - 1):
            whole += parts[k]
        if JOIN == SUM and not NORMALIZE:
            total = whole
        else:
            divisor = tl.zeros((BLOCK,), tl.float32)
            for k in tl.static_range(COUNT - 1):
                left = parts[k] != 0.0
                if JOIN == ELECT:  # TIES, arXiv:2306.01708: the sign of sum_i w_i tau_i
                    same = ((parts[k] > 0.0) & (whole > 0.0)) | ((parts[k] < 0.0) & (whole < 0.0))
                    left = left & same
                left = left.to(tl.float32)  # times 0, not left out: NaN stays what it is
                total += parts[k] * left
                divisor += left * tl.abs(tl.load(numbers + (k + 1) * 4))
            if NORMALIZE:
                total = total * tl.div_rn(1.0, tl.where(divisor > 0.0, divisor, 1.0))
    return origin + total * tl.load(numbers)  # of the base: the scale


@triton.jit
def _digested(rounded, within, inside, keys, PLAN: tl.constexpr):
    """Return each element's share of the digest: its 32-bit word times the word's key."""
    if PLAN == FLOAT32:
        word = rounded.to(tl.uint32, bitcast=True).to(tl.uint64)
        shares = word * tl.load(keys + within).to(tl.uint64)
    else:  # two elements a word, the first of them low
        word = rounded.to(tl.uint16, bitcast=True).to(tl.uint64)
        key = tl.load(keys + within // 2).to(tl.uint64)
        shares = (word * key) << ((within % 2) * 16).to(tl.uint64)
    return tl.where(inside, shares, 0)


@triton.jit
def merge(
    tiles, addresses, outs, sizes, numbers, words, keys, digests, broken, WIDTH,
    COUNT: tl.constexpr, DTYPES: tl.constexpr, PLAN: tl.constexpr, OUT: tl.constexpr,
    THIN: tl.constexpr, JOIN: tl.constexpr, NORMALIZE: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge one tile of one row.

    Args:
        tiles: (launched, 3) int64: the row, the first element, and where its digest belongs.
        addresses: (rows, WIDTH) int64 of the operands, the base first where THIN is not WEIGHTED.
        outs: (rows,) int64, addresses of what is overwritten.
        sizes: (rows,) int64 elements.
        numbers: (rows, WIDTH, 4) float32: weight and what thinning needs; of a base, the scale and
            how many votes are needed.
        words: (rows, WIDTH, 3) int64: key, key, and threshold or the address of the ranks.
        keys: of the digest, uint32 as int32's bits.
        digests, broken: (tiles,) int64: the digest, and how many elements are not finite.
        WIDTH: operands in a row of the tables.
        COUNT, DTYPES: operands, and their dtypes' codes, the first lowest, to the base of three.
        PLAN, OUT: codes of the merge's dtype and of the target's.
        THIN, JOIN, NORMALIZE: what is done, see `masked.Masked`.
        ALIGNED: all addresses are multiples of 16.
        TILE, BLOCK: elements of a tile, and of a step within it.
    """
    tile = tiles + tl.program_id(0) * 3
    row, first = tl.load(tile), tl.load(tile + 1)
    count = tl.minimum(tl.load(sizes + row) - first, TILE)
    own = addresses + row * WIDTH
    own_numbers, own_words = numbers + row * WIDTH * 4, words + row * WIDTH * 3
    out = _pointer(tl.load(outs + row), OUT, ALIGNED)
    digest = tl.zeros((BLOCK,), tl.uint64)
    wrong = tl.zeros((BLOCK,), tl.int32)
    steps = tl.arange(0, BLOCK)
    whole = count // BLOCK
    for step in range(whole):
        within = step * BLOCK + steps
        start = first + step * BLOCK
        inside = within < TILE
        x = _block(
            own, own_numbers, own_words, start + steps, inside, start, BLOCK, COUNT, DTYPES, THIN,
            JOIN, NORMALIZE, ALIGNED, False,
        )  # fmt: skip
        x = _rounded(x, PLAN)
        tl.store(out + start + steps, x.to(out.dtype.element_ty))
        digest += _digested(x, within, inside, keys, PLAN)
        wrong += tl.where(tl.abs(x.to(tl.float32)) < float("inf"), 0, 1)
    if whole * BLOCK < count:  # the last elements of a tensor
        within = whole * BLOCK + steps
        start = first + whole * BLOCK
        inside = within < count
        x = _block(
            own, own_numbers, own_words, start + steps, inside, start, BLOCK, COUNT, DTYPES, THIN,
            JOIN, NORMALIZE, ALIGNED, True,
        )  # fmt: skip
        x = _rounded(x, PLAN)
        tl.store(out + start + steps, x.to(out.dtype.element_ty), mask=inside)
        digest += _digested(x, within, inside, keys, PLAN)
        wrong += tl.where((tl.abs(x.to(tl.float32)) < float("inf")) | (within >= count), 0, 1)
    place = tl.load(tile + 2)
    tl.store(digests + place, tl.sum(digest).to(tl.int64, bitcast=True))
    tl.store(broken + place, tl.sum(wrong).to(tl.int64))
