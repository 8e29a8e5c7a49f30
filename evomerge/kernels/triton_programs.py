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

WEIGHTED, SIZE, RANDOM, RANKED, VOTES, SIGNED = (tl.constexpr(i) for i in range(6))

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
        elements = tl.load(pointer + at, mask=inside, other=0.0)
    else:
        elements = tl.load(pointer + at)
    return elements.to(tl.float32)


@triton.jit
def _rounded(x, CODE: tl.constexpr):
    """Return float32 rounded to a dtype once, to the nearest and ties to even."""
    if CODE == BFLOAT16:
        rounded = x.to(tl.bfloat16)
    elif CODE == FLOAT16:
        rounded = x.to(tl.float16)
    else:
        rounded = x
    return rounded


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
    left = tau
    if THIN == SIZE:
        size = tl.abs(tau)
        kept = (size >= tl.load(numbers + 1)) & (size <= tl.load(numbers + 2))
        left = tau * kept.to(tl.float32)  # times 0, not left out: NaN stays what it is
    elif THIN == RANDOM:
        draws = _draws(start, tl.load(words), tl.load(words + 1), BLOCK)
        left = tau * (draws < tl.load(words + 2)).to(tl.float32) * tl.load(numbers + 1)
    elif THIN == RANKED:
        draws = _draws(start, tl.load(words), tl.load(words + 1), BLOCK)
        levels = tl.load(words + 2).to(tl.pointer_type(tl.uint8))
        if MASKED:
            level = tl.load(levels + at, mask=inside, other=0)
        else:
            level = tl.load(levels + at)
        chance = tl.load(numbers + 1) + level.to(tl.float32) * tl.load(numbers + 2)
        threshold = tl.minimum(tl.maximum(chance, 0.0), 65536.0).to(tl.int32)
        left = tau * (draws < threshold).to(tl.float32)
        if tl.load(numbers + 3) != 0.0:
            left = left * tl.div_rn(65536.0, tl.maximum(threshold, 1).to(tl.float32))
    return left


@triton.jit
def _weighted_sum(
    addresses, numbers, at, inside, BLOCK: tl.constexpr, COUNT: tl.constexpr,
    DTYPES: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return a block of a weighted sum in float32; see `eager.weighted_sum`."""
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(COUNT):
        weight = tl.load(numbers + k * 4)
        pointer = _pointer(tl.load(addresses + k), (DTYPES // 3**k) % 3, ALIGNED)
        # what has no share is not even read
        read = tl.broadcast_to(weight, (BLOCK,)) != 0.0
        if MASKED:
            read = read & inside
        total += tl.load(pointer + at, mask=read, other=0.0).to(tl.float32) * weight
    return total


@triton.jit
def _signed_sum(
    addresses, numbers, words, at, inside, BLOCK: tl.constexpr, COUNT: tl.constexpr,
    DTYPES: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return a block of a weighted sum of a tensor and signs, in float32; see `signs.Signs`."""
    base = _pointer(tl.load(addresses), DTYPES % 3, ALIGNED)
    total = tl.zeros((BLOCK,), tl.float32)
    total += _loaded(base, at, inside, MASKED) * tl.load(numbers)
    for k in range(1, COUNT):  # not unrolled: forty of them would take long to compile
        weight, bits = tl.load(numbers + k * 4), tl.load(words + k * 3)
        codes = tl.load(addresses + k).to(tl.pointer_type(tl.uint8))
        place = at * bits
        if MASKED:
            byte = tl.load(codes + (place >> 3), mask=inside, other=0)
        else:
            byte = tl.load(codes + (place >> 3))
        code = byte.to(tl.int64) >> (place & 7)
        # of two bits, the lower says that there is something; the uppermost, that it is negative
        part = tl.where(((code >> (bits - 1)) & 1) != 0, -weight, weight)
        total += tl.where(((code & 1) != 0) | (bits == 1), part, 0.0)
    return total


@triton.jit
def _masked_sum(
    addresses, numbers, words, at, inside, start, BLOCK: tl.constexpr, COUNT: tl.constexpr,
    DTYPES: tl.constexpr, THIN: tl.constexpr, JOIN: tl.constexpr, NORMALIZE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return a block of a masked sum in float32; see `eager.masked_sum`."""
    total = tl.zeros((BLOCK,), tl.float32)
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
def _block(
    addresses, numbers, words, at, inside, start, BLOCK: tl.constexpr, COUNT: tl.constexpr,
    DTYPES: tl.constexpr, THIN: tl.constexpr, JOIN: tl.constexpr, NORMALIZE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return a block of the merged tensor in float32."""
    if THIN == WEIGHTED:
        block = _weighted_sum(
            addresses, numbers, at, inside, BLOCK, COUNT, DTYPES, ALIGNED, MASKED
        )  # fmt: skip
    elif THIN == SIGNED:
        block = _signed_sum(
            addresses, numbers, words, at, inside, BLOCK, COUNT, DTYPES, ALIGNED, MASKED
        )  # fmt: skip
    else:
        block = _masked_sum(
            addresses, numbers, words, at, inside, start, BLOCK, COUNT, DTYPES, THIN, JOIN,
            NORMALIZE, ALIGNED, MASKED,
        )  # fmt: skip
    return block


@triton.jit
def _digest(rounded, step, inside, keys, BLOCK: tl.constexpr, PLAN: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """Return each 32-bit word of a block times its key, as the digest adds them up.

    Args:
        rounded: (BLOCK,) merged elements; beyond the tensor's end they are 0.
        step: of the block within its tile.
    """
    if MASKED:
        rounded = tl.where(inside, rounded, tl.zeros_like(rounded))
    if PLAN == FLOAT32:
        word = rounded.to(tl.uint32, bitcast=True)
        key = tl.load(keys + step * BLOCK + tl.arange(0, BLOCK))
    else:  # two elements a word, the first of them low
        low, high = tl.split(tl.reshape(rounded.to(tl.uint16, bitcast=True), (BLOCK // 2, 2)))
        word = low.to(tl.uint32) | (high.to(tl.uint32) << 16)
        key = tl.load(keys + step * (BLOCK // 2) + tl.arange(0, BLOCK // 2))
    return word.to(tl.uint64) * key.to(tl.uint64)


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
        addresses: (rows, WIDTH) int64 of the operands, the base first where THIN is not WEIGHTED;
            of signs, those of their codes.
        outs: (rows,) int64, addresses of what is overwritten.
        sizes: (rows,) int64 elements.
        numbers: (rows, WIDTH, 4) float32: weight and what thinning needs; of a base, the scale and
            how many votes are needed.
        words: (rows, WIDTH, 3) int64: key, key, and threshold or the address of the ranks; of
            signs, the bits.
        keys: of the digest, uint32 as int32's bits.
        digests, broken: (tiles,) int64: the digest, and 1 where an element is not finite.
        WIDTH: operands in a row of the tables.
        COUNT, DTYPES: operands, and their dtypes' codes, the first lowest, to the base of three;
            where the others are signs, the first one's.
        PLAN, OUT: codes of the merge's dtype and of the target's.
        THIN, JOIN, NORMALIZE: what is done, see `masked.Masked`.
        ALIGNED: all addresses are multiples of 16.
        TILE, BLOCK: elements of a tile, and of a step within it.
    """
    tile = tiles + tl.program_id(0) * 3
    row, first = tl.load(tile), tl.multiple_of(tl.load(tile + 1), BLOCK)
    count = tl.minimum(tl.load(sizes + row) - first, TILE)
    own = addresses + row * WIDTH
    own_numbers, own_words = numbers + row * WIDTH * 4, words + row * WIDTH * 3
    out = _pointer(tl.load(outs + row), OUT, ALIGNED)
    WORDS: tl.constexpr = BLOCK if PLAN == FLOAT32 else BLOCK // 2
    digest = tl.zeros((WORDS,), tl.uint64)
    wrong = tl.zeros((BLOCK,), tl.float32)
    steps = tl.arange(0, BLOCK)
    whole = count // BLOCK
    for step in range(whole):
        start = first + step * BLOCK
        x = _block(
            own, own_numbers, own_words, start + steps, steps < BLOCK, start, BLOCK, COUNT, DTYPES,
            THIN, JOIN, NORMALIZE, ALIGNED, False,
        )  # fmt: skip
        x = _rounded(x, PLAN)
        tl.store(out + start + steps, x.to(out.dtype.element_ty))
        digest += _digest(x, step, steps < BLOCK, keys, BLOCK, PLAN, False)
        wrong += x.to(tl.float32) * 0.0  # which an infinity or NaN makes NaN
    if whole * BLOCK < count:  # the last elements of a tensor
        start = first + whole * BLOCK
        inside = whole * BLOCK + steps < count
        x = _block(
            own, own_numbers, own_words, start + steps, inside, start, BLOCK, COUNT, DTYPES, THIN,
            JOIN, NORMALIZE, ALIGNED, True,
        )  # fmt: skip
        x = _rounded(x, PLAN)
        tl.store(out + start + steps, x.to(out.dtype.element_ty), mask=inside)
        digest += _digest(x, whole, inside, keys, BLOCK, PLAN, True)
        wrong += tl.where(inside, x.to(tl.float32), 0.0) * 0.0
    place = tl.load(tile + 2)
    tl.store(digests + place, tl.sum(digest).to(tl.int64, bitcast=True))
    tl.store(broken + place, (tl.sum(wrong) != 0.0).to(tl.int64))
