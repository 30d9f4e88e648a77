"""How the chunks of a page store are made smaller, each by itself."""

import zlib
from collections.abc import Callable

from woodfrog.errors import ImageError

COMPRESSIONS = ("none", "flate-best-speed", "zstd")

_RAW_DEFLATE = -15

Packer = Callable[[memoryview], bytes | memoryview]


def packer(compression: str) -> Packer:
    """Return a function for one thread that makes a chunk shorter, or returns it as it is.

    Both kinds work at their fastest: a checkpoint waits for them, and memory mostly compresses
    well or not at all.
    """
    if compression == "none":
        return lambda chunk: chunk
    compress: Callable[[memoryview], bytes] = _deflate
    if compression == "zstd":
        import zstandard

        compress = zstandard.ZstdCompressor(level=1, write_checksum=False).compress

    def pack(chunk: memoryview) -> bytes | memoryview:
        packed = compress(chunk)
        return packed if len(packed) < len(chunk) else chunk

    return pack


def unpack(compression: str, packed: memoryview, length: int) -> bytes:
    """Return the chunk of `length` bytes that was packed; raises ImageError.

    Never is more allocated, whatever the packed bytes claim.
    """
    memory = _decompress(packed, length) if compression == "zstd" else _inflate(packed, length)
    if len(memory) != length:
        raise ImageError("a compressed chunk has another length")
    return memory


def _deflate(chunk: memoryview) -> bytes:
    deflate = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, _RAW_DEFLATE)
    return deflate.compress(chunk) + deflate.flush()


def _inflate(packed: memoryview, length: int) -> bytes:
    inflate = zlib.decompressobj(_RAW_DEFLATE)
    try:
        memory = inflate.decompress(packed, length)
        # The end of the stream is no memory any more, and may be still to come.
        memory += inflate.decompress(inflate.unconsumed_tail, 1)
    except zlib.error as error:
        raise ImageError(f"a chunk can't be decompressed: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise ImageError("a compressed chunk has another length")
    return memory


def _decompress(packed: memoryview, length: int) -> bytes:
    import zstandard

    try:
        # The library allocates what a frame claims, so ask before.
        if zstandard.frame_content_size(packed) != length:
            raise ImageError("a compressed chunk has another length")
        memory: bytes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=length)
    except zstandard.ZstdError as error:
        raise ImageError(f"a chunk can't be decompressed: {error}") from error
    return memory
