"""The loaders that others train from, over the same tiles: LitData, MosaicML Streaming (MDS) and WebDataset.

Each comes raw, with zstd, and as a container of the cells of our shards. A measuring program writes tiles with one of
them and reads epochs from it; `python -m tests.bench.peers` checks that each yields every tile exactly once an epoch,
from a folder and from an S3 server. It runs where the peers are installed beside the project:
`uv run --with litdata==0.2.76 --with mosaicml-streaming==0.13.0 --with webdataset==1.0.2 python -m tests.bench.peers`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from raytrain.tiles.format import decode_cell, encode_cell

Tile = tuple[str, NDArray[np.uint16], NDArray[np.uint8]]
"""Id, bands `[C, H, W]`, label `[H, W]`."""
Variant = Literal["raw", "zstd", "cells"]

SHARD_BYTES = 64_000_000
ZSTD_LEVEL = 9
"""Decodes as fast as the peers' defaults of 3 and 4, at 2 to 3 % less; 19 saves 5 % more and writes a chip a second."""
SHUFFLE_TILES = 64
"""WebDataset's buffer, in each worker; its documentation's 1000 would be 2.4 GB of raw tiles."""


@dataclass(frozen=True)
class Peer:
    """One way to store tiles and to read them shuffled.

    `dataset` takes the folder that `write` filled, an empty folder for what the peer keeps on disk by itself, and the
    loader's batch size; it yields `(bands [C, H, W] uint16, label [H, W] uint8)`, as arrays or tensors that may be
    read-only, or views of a mapped file that nobody has read yet. `remote` does so from `s3://bucket/folder`. `loader`
    takes a dataset, the batch size, the number of workers and a collating function. A dataset serves one loader.
    """

    name: str
    write: Callable[[Iterable[Tile], Path], None]
    dataset: Callable[[Path, Path, int], IterableDataset[Any]]
    remote: Callable[[str, Path, int], IterableDataset[Any]]
    loader: Callable[[IterableDataset[Any], int, int, Callable[[list[Any]], Any] | None], DataLoader[Any]]


def pack_cells(bands: NDArray[np.uint16], label: NDArray[np.uint8]) -> bytes:
    """Return the cells of our shards as one string of bytes: shape, the size of each cell, the cells."""
    cells = [encode_cell(array, "blosc2-bitshuffle-zstd") for array in (*bands, label)]
    header = np.array([*bands.shape, *map(len, cells)], "<u4")
    return b"".join([header.tobytes(), *cells])


def unpack_cells(data: bytes | memoryview) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return bands and label of what `pack_cells` made."""
    view = memoryview(data)
    channels, height, width = (int(number) for number in np.frombuffer(view, "<u4", 3))
    sizes = np.frombuffer(view, "<u4", channels + 1, offset=12)
    ends = [int(end) for end in 12 + sizes.nbytes + np.cumsum(sizes)]
    starts = [12 + sizes.nbytes, *ends[:-1]]
    bands, label = np.empty((channels, height, width), "<u2"), np.empty((height, width), np.uint8)
    for out, start, end in zip((*bands, label), starts, ends, strict=True):
        decode_cell(view[start:end], out, "blosc2-bitshuffle-zstd")
    return bands, label


def _plain_loader(
    dataset: IterableDataset[Any], batch_size: int, workers: int, collate: Callable[[list[Any]], Any] | None
) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)


# LitData


def _write_litdata(variant: Variant, tiles: Iterable[Tile], folder: Path) -> None:
    """Write chunks.

    zstd has a frame a sample, which read fastest: frames of 8 and of 256 (the default) were slower, the level "sample"
    decodes with another, slower library, and "chunk" unpacks whole files into the folder itself. Samples are tensors:
    0.2.76 writes tuples of arrays uncompressed into chunks whose index says that they are compressed.
    """
    import torch
    from litdata.streaming import Cache

    zstd: dict[str, Any] = {
        "compression": f"zstd:{ZSTD_LEVEL}",
        "compression_level": "batch",
        "compression_batch_size": 1,
    }
    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES, **(zstd if variant == "zstd" else {}))
    for i, (_, bands, label) in enumerate(tiles):
        if variant == "cells":
            cache[i] = pack_cells(bands, label)
        else:
            cache[i] = (torch.from_numpy(np.array(bands)), torch.from_numpy(np.array(label)))
    cache.done()
    cache.merge()


def _litdata(variant: Variant, source: Path | str, cache: Path, batch_size: int) -> IterableDataset[Any]:
    """Read chunks of a folder in place, by mapping them; those of a store go to `cache`.

    Chunks of a store come by obstore, which takes credentials and endpoint from boto3's client, but refuses plain HTTP,
    and LitData 0.2.76 has no setting for that: neither its options nor the environment reach obstore.
    """
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
    transform = unpack_cells if variant == "cells" else None
    return StreamingDataset(str(source), cache_dir=str(cache), shuffle=True, transform=transform)


def _litdata_loader(
    dataset: IterableDataset[Any], batch_size: int, workers: int, collate: Callable[[list[Any]], Any] | None
) -> DataLoader[Any]:
    from litdata import StreamingDataLoader

    return StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)


# MosaicML Streaming


def _write_mds(variant: Variant, tiles: Iterable[Tile], folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"cells": "bytes"} if variant == "cells" else {"bands": "ndarray:uint16", "label": "ndarray:uint8"}
    compression = f"zstd:{ZSTD_LEVEL}" if variant == "zstd" else None
    with MDSWriter(out=str(folder), columns=columns, compression=compression, size_limit=SHARD_BYTES) as writer:
        for _, bands, label in tiles:
            if variant == "cells":
                writer.write({"cells": pack_cells(bands, label)})
            else:
                writer.write({"bands": bands, "label": label})


def _mds(variant: Variant, source: Path | str, cache: Path, batch_size: int) -> IterableDataset[Any]:
    """Read shards of a folder in place; compressed ones and those of a store are unpacked whole into `cache`.

    The store's endpoint comes from `AWS_ENDPOINT_URL`, as boto3 has it; `S3_ENDPOINT_URL` would go before it.
    """
    from streaming import StreamingDataset

    in_place = isinstance(source, Path) and variant != "zstd"
    where = {"local": str(source)} if in_place else {"remote": str(source), "local": str(cache)}
    return _Tiles(StreamingDataset(**where, shuffle=True, batch_size=batch_size))


class _Tiles(IterableDataset[Any]):
    """The tiles of an MDS dataset; a subclass, as its documentation has it, couldn't be sent to spawned workers."""

    def __init__(self, samples: Iterable[dict[str, Any]]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        for sample in self._samples:
            yield unpack_cells(sample["cells"]) if "cells" in sample else (sample["bands"], sample["label"])


# WebDataset


def _write_webdataset(variant: Variant, tiles: Iterable[Tile], folder: Path) -> None:
    import pyarrow as pa
    from webdataset import ShardWriter
    from webdataset.writer import numpy_dumps

    folder.mkdir(parents=True, exist_ok=True)
    codec = pa.Codec("zstd", ZSTD_LEVEL)
    with ShardWriter(f"{folder}/%06d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
        for tile_id, bands, label in tiles:
            sample: dict[str, Any] = {"__key__": tile_id}
            if variant == "cells":
                sample["cells.bin"] = pack_cells(bands, label)
            elif variant == "raw":
                sample |= {"bands.npy": bands, "label.npy": label}
            else:
                for name, array in (("bands", bands), ("label", label)):
                    npy = numpy_dumps(array)
                    sample[f"{name}.zst"] = np.uint32(len(npy)).tobytes() + codec.compress(npy, asbytes=True)
            writer.write(sample)


def _webdataset(variant: Variant, source: Path | str, cache: Path, batch_size: int) -> IterableDataset[Any]:
    """Read tars from a folder, or as streams by curl with signed addresses; nothing is kept on disk.

    Whole tars are dealt to the workers: with fewer tars than workers, or some more, workers idle.
    """
    from webdataset import WebDataset

    urls = sorted(map(str, source.glob("*.tar"))) if isinstance(source, Path) else _signed(source)
    dataset = WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(SHUFFLE_TILES)
    return dataset.map(partial(_from_webdataset, variant))


def _from_webdataset(variant: Variant, sample: dict[str, bytes]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    from webdataset.autodecode import npy_loads

    if variant == "cells":
        return unpack_cells(sample["cells.bin"])
    if variant == "raw":
        return npy_loads(sample["bands.npy"]), npy_loads(sample["label.npy"])
    return npy_loads(_unzstd(sample["bands.zst"])), npy_loads(_unzstd(sample["label.zst"]))


def _unzstd(data: bytes) -> bytes:
    import pyarrow as pa

    size = int(np.frombuffer(data, "<u4", 1)[0])
    return pa.Codec("zstd").decompress(memoryview(data)[4:], size, asbytes=True)


def _signed(uri: str) -> list[str]:
    """Return an address for each tar under `uri`, signed with the keys of the environment and good for an hour."""
    import boto3
    from botocore.config import Config

    bucket, prefix = urlsplit(uri).netloc, urlsplit(uri).path.strip("/") + "/"
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []) if item["Key"].endswith(".tar"))
    return [client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}) for key in keys]


def _peers() -> Iterator[Peer]:
    kinds = [
        ("LitData", _write_litdata, _litdata, _litdata_loader),
        ("MDS", _write_mds, _mds, _plain_loader),
        ("WebDataset", _write_webdataset, _webdataset, _plain_loader),
    ]
    variants: list[tuple[Variant, str]] = [("raw", ""), ("zstd", " zstd"), ("cells", " same cells")]
    for (name, write, read, loader), (variant, suffix) in itertools.product(kinds, variants):
        opened = partial(read, variant)
        yield Peer(name + suffix, partial(write, variant), opened, opened, loader)


PEERS = list(_peers())


def size(folder: Path) -> int:
    """Return the bytes of all files under `folder`; call it before anything reads there, since peers leave locks."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cold(folder: Path) -> None:
    """Drop all files under `folder` from the page cache; those that a living dataset has mapped stay in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def check(peer: Peer, tiles: list[Tile], folder: Path, uri: str | None = None) -> None:
    """Raise `AssertionError` unless two epochs with 0 and with 2 workers yield each of `tiles` once, and shuffled.

    `folder` is empty, and so is `uri`, to which the stored files are copied if it is given.
    """
    peer.write(tiles, folder / "stored")
    if uri is not None:
        from raytrain import storage

        storage.filesystem(uri).put(f"{folder}/stored/", uri, recursive=True)
    expected = [_digest(bands, label) for _, bands, label in tiles]
    for source, workers in itertools.product(["folder"] + ([uri] if uri else []), (0, 2)):
        cache = Path(tempfile.mkdtemp(dir=folder))
        dataset = peer.dataset(folder / "stored", cache, 4) if source == "folder" else peer.remote(source, cache, 4)
        loader = peer.loader(dataset, 4, workers, list)
        for epoch in range(2):
            found = [_digest(np.asarray(bands), np.asarray(label)) for batch in loader for bands, label in batch]
            where = f"{peer.name}, {source}, {workers} workers, epoch {epoch}"
            assert Counter(found) == Counter(expected), f"{where}: {len(found)} of {len(expected)} tiles, or others"
            assert found != expected, f"{where}: in the order in which they were written"


def _digest(bands: NDArray[Any], label: NDArray[Any]) -> str:
    assert (bands.dtype, label.dtype) == (np.uint16, np.uint8)
    return hashlib.sha256(f"{bands.shape}".encode() + bands.tobytes() + label.tobytes()).hexdigest()


def main() -> None:
    """Check all peers with random tiles, from a folder and from an S3 server of this process."""
    from moto.server import ThreadedMotoServer

    from raytrain import storage

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=101)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    tiles: list[Tile] = [
        (
            f"tile{i:05d}",
            random.integers(0, 4000, (4, 512, 512), np.uint16),
            random.integers(0, 2, (512, 512), np.uint8),
        )
        for i in range(options.tiles)
    ]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    storage.filesystem("s3://bucket").mkdir("bucket")
    for i, peer in enumerate(PEERS):
        with tempfile.TemporaryDirectory() as folder:
            check(peer, tiles, Path(folder), f"s3://bucket/{i}")
            print(f"{peer.name}: {size(Path(folder) / 'stored') / len(tiles) / 1e6:.2f} MB a tile, checked")
    server.stop()


if __name__ == "__main__":
    main()
