"""Predictions against labels, pixel by pixel: pairs of files, strips, maps, members, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import counting, masks, predictions, tally
from raytrain.evaluation.masks import Pair, Prediction, Reading
from raytrain.scoring import ledger
from raytrain.scoring.destination import Scoring
from raytrain.scoring.records import Record
from raytrain.tiles.metadata import MetadataRow

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
GOOD = np.eye(8, dtype=np.uint8)
EDGE_PX = 5


def write_tiff(path: Path, pixels: NDArray[Any], scale: float = 1.0, **profile: Any) -> str:
    stack = pixels[None] if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    profile |= {"count": stack.shape[0], "height": stack.shape[1], "width": stack.shape[2], "dtype": stack.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32636", transform=TRANSFORM, **profile) as target:
        target.write(stack)
        target.scales = (scale,) * stack.shape[0]
    return str(path)


def random_mask(seed: int, shape: tuple[int, int], values: tuple[int, ...] = (0, 1, 255)) -> NDArray[np.uint8]:
    """Areas, not noise, so that there are pixels away from edges."""
    draw = np.random.default_rng(seed)
    coarse = draw.choice(np.array(values, np.uint8), (shape[0] // 9 + 1, shape[1] // 9 + 1))
    mask = coarse.repeat(9, 0).repeat(9, 1)[: shape[0], : shape[1]].copy()
    speckled = draw.random(shape) < 0.01
    mask[speckled] = draw.choice(np.array(values, np.uint8), int(speckled.sum()))
    return mask


def random_map(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    values = draw.beta(0.4, 0.4, shape).astype(np.float32)
    on_a_threshold = draw.random(shape) < 0.2
    values[on_a_threshold] = draw.choice(counting.EDGES, int(on_a_threshold.sum()))
    return values


def row(chip_id: str, location: str = "Lodwar") -> MetadataRow:
    return MetadataRow(chip_id, location, None)


def pair_of(tmp_path: Path, prediction: NDArray[Any], label: NDArray[Any], **profile: Any) -> Pair:
    uri = write_tiff(tmp_path / "predictions/adwp.tif", prediction, **profile)
    return Pair("adwp", "Lodwar", write_tiff(tmp_path / "labels/adwp.tif", label), (Prediction(uri),))


def count(pair: Pair, strip_pixels: int = masks.STRIP_PIXELS, **reading: Any) -> masks.Counts:
    return masks.count_pair(pair, [Reading(**reading)], EDGE_PX, strip_pixels)[0]


def brute_force(predicted: NDArray[np.bool_], label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count pixel by pixel, looking for an opposite pixel within EDGE_PX of each."""
    found = np.zeros((2, 4), np.int64)
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            if label[y, x] == 255:
                continue
            around = label[max(0, y - EDGE_PX) : y + EDGE_PX + 1, max(0, x - EDGE_PX) : x + EDGE_PX + 1]
            is_near = bool((around == (0 if label[y, x] == 1 else 1)).any())
            kind = {(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(predicted[y, x]), int(label[y, x])]
            found[0 if is_near else 1, kind] += 1
    return found


# Counts


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (53, 1), (31, 47), (64, 64)])
@pytest.mark.parametrize("strip_pixels", [1, 100, 1000, masks.STRIP_PIXELS])
def test_counts_are_those_of_brute_force_whatever_the_strips(
    tmp_path: Path, shape: tuple[int, int], strip_pixels: int
) -> None:
    prediction, label = random_mask(1, shape), random_mask(2, shape)
    found = count(pair_of(tmp_path, prediction, label), strip_pixels)
    assert np.array_equal(found.confusion, brute_force(prediction == 1, label))
    assert found.unpredicted_px == int(((prediction == 255) & (label != 255)).sum())
    if shape == (64, 64):
        assert found.confusion.min(1).max() > 0, "both zones have pixels of every kind"


def test_a_tiled_scene_of_several_strips_counts_as_a_whole(tmp_path: Path) -> None:
    prediction, label = random_mask(3, (2311, 1733)), random_mask(4, (2311, 1733))
    pair = pair_of(tmp_path, prediction, label, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    strip_pixels = 600 * 1733
    assert [window.height for window in masks.strips(2311, 1733, strip_pixels)] == [512, 512, 512, 512, 263]
    found = count(pair, strip_pixels)
    assert np.array_equal(found.confusion, count(pair).confusion)
    valid = label != 255
    assert found.confusion.sum() == valid.sum()
    assert found.confusion[:, 0].sum() == ((prediction == 1) & (label == 1)).sum()


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 1), (20_000, 20_000), (7, 2**25), (20_001, 3)])
def test_strips_cover_every_row_once_within_the_limit(height_px: int, width_px: int) -> None:
    end = 0
    for window in masks.strips(height_px, width_px):
        assert (window.row_off, window.col_off, window.width) == (end, 0, width_px)
        assert window.height == 1 or window.height * width_px <= masks.STRIP_PIXELS
        end += window.height
    assert end == height_px


def test_what_is_ignored_makes_no_edge() -> None:
    label = np.zeros((30, 30), np.uint8)
    label[:, 20:] = 1
    assert counting.near_edges(label, 5)[0].nonzero()[0].tolist() == list(range(15, 25))
    label[:, 19:21] = 255
    assert counting.near_edges(label, 5)[0].nonzero()[0].tolist() == list(range(16, 24))
    label[:, 12:28] = 255
    assert not counting.near_edges(label, 5).any()


@pytest.mark.parametrize("strip_pixels", [64, 1000, masks.STRIP_PIXELS])
def test_maps_are_counted_as_brute_force_does_at_every_threshold(tmp_path: Path, strip_pixels: int) -> None:
    probability, label = random_map(5, (40, 64)), random_mask(6, (40, 64))
    probability[3:9, 5:20] = np.nan
    pair = pair_of(tmp_path, probability, label, nodata=float("nan"))
    found = count(pair, strip_pixels, maps_allowed=True)
    valid, given = label != 255, ~np.isnan(probability)
    assert found.maps is not None
    assert found.maps.unpredicted.tolist() == [int(((label == value) & ~given).sum()) for value in (0, 1)]
    for k, threshold in enumerate(counting.EDGES[:-1]):
        reached = [int((given & (probability >= threshold) & (label == value)).sum()) for value in (0, 1)]
        assert found.maps.pixels[:, k:].sum(1).tolist() == reached, threshold
    sums = [float(probability[given & (label == value)].astype(np.float64).sum()) for value in (0, 1)]
    assert found.maps.sums.sum(1) == pytest.approx(sums, rel=1e-12)
    predicted = given & (np.nan_to_num(probability) >= np.float32(0.5))
    assert np.array_equal(found.confusion, brute_force(predicted, label))
    assert found.unpredicted_px == int((valid & ~given).sum())


@pytest.mark.parametrize("largest", [np.float32(1.0), np.nextafter(np.float32(1), np.float32(0))])
def test_every_probability_lies_between_the_ends_of_its_bin(largest: np.float32) -> None:
    near = [np.nextafter(edge, np.float32(side)) for edge in counting.EDGES for side in (0, 1)]
    values = np.clip(np.array([*near, *counting.EDGES, largest], np.float32), 0, 1)
    places = counting.bins(values)
    assert (values >= counting.EDGES[places]).all()
    assert ((values < counting.EDGES[places + 1]) | (places == counting.NUM_BINS - 1)).all()


def test_whole_numbers_are_probabilities_by_their_scale(tmp_path: Path) -> None:
    stored = np.array([[0, 127, 128, 254, 255]], np.uint8)
    label = np.array([[0, 0, 1, 1, 1]], np.uint8)
    named = pair_of(tmp_path / "named", stored, label, scale=1 / 254, nodata=255)
    bare = pair_of(tmp_path / "bare", stored, label, nodata=255)
    expected = [[2, 1, 1, 1], [0, 0, 0, 0]]  # 127 of 254 is 0.5: cloud
    assert count(named, maps_allowed=True).confusion.tolist() == expected
    assert count(bare, maps_allowed=True, scale=1 / 254).confusion.tolist() == expected
    assert count(named, maps_allowed=True, threshold=0.51).confusion[0].tolist() == [1, 0, 2, 2]
    with pytest.raises(DataError, match=r"values other than 0, 1 and 255: 127, 128, 254; .*--scale"):
        count(bare, maps_allowed=True)
    with pytest.raises(DataError, match="are these probabilities"):
        count(named)
    with pytest.raises(DataError, match=r"probabilities between 0 and 2\.54, expected 0 to 1"):
        count(bare, maps_allowed=True, scale=0.01)
    assert count(named, maps_allowed=True, scale=0.001).confusion.tolist() == expected, "the file knows better"
    percent = pair_of(tmp_path / "percent", stored.astype(np.float32) / 2.54, label)
    with pytest.raises(DataError, match=r"between 0 and 100.4, .* \(--scale is for whole numbers alone\)"):
        count(percent, maps_allowed=True, scale=0.01)


@pytest.mark.parametrize("strip_pixels", [10, masks.STRIP_PIXELS])
def test_a_mask_is_never_read_by_a_scale(tmp_path: Path, strip_pixels: int) -> None:
    label = random_mask(2, (30, 40))
    mask = pair_of(tmp_path / "mask", random_mask(1, (30, 40)), label)
    with pytest.raises(DataError, match=r"0, 1 and 255 alone: a mask, or a map by --scale 0\.003\?") as caught:
        count(mask, strip_pixels, maps_allowed=True, scale=0.003)
    assert str(tmp_path / "mask") in str(caught.value)
    saturated = pair_of(tmp_path / "saturated", (label == 1).astype(np.uint8) * 255, label)
    assert count(saturated, strip_pixels, maps_allowed=True, scale=1 / 255).confusion[:, 1:3].sum() == 0
    faint = pair_of(tmp_path / "faint", np.where(label == 1, 2, label).astype(np.uint8), label, nodata=255)
    assert count(faint, strip_pixels, maps_allowed=True, scale=0.3).confusion[:, 1:3].sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_stored_threshold_is_reached_to_the_pixel(tmp_path: Path, dtype: type) -> None:
    stored = np.arange(101, dtype=dtype)[None]
    pair = pair_of(tmp_path, stored, np.ones(stored.shape, np.uint8), scale=0.01)
    for k in range(1, 101):
        found = count(pair, maps_allowed=True, threshold=k / 100)
        assert found.confusion.sum(0).tolist() == [101 - k, 0, k, 0], k


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("strip_pixels", [80, masks.STRIP_PIXELS])
def test_what_the_mask_of_a_file_leaves_out_has_no_prediction_and_no_label(
    tmp_path: Path, inside: bool, strip_pixels: int
) -> None:
    shape = (30, 40)
    prediction, label = random_mask(1, shape, (0, 1)), random_mask(2, shape, (0, 1))
    probability = np.where(prediction, np.float32(0.9), np.float32(0.1))
    left_out, unlabelled = random_mask(3, shape, (0, 1)) == 1, random_mask(4, shape, (0, 1)) == 1
    mask, map_ = (pair_of(tmp_path / name, pixels, label) for name, pixels in (("a", prediction), ("b", probability)))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        for uri, hidden in ((mask.predictions[0].uri, left_out), (map_.predictions[0].uri, left_out)):
            leave_out(uri, hidden)
        for pair in (mask, map_):
            leave_out(pair.label, unlabelled)
    assert Path(f"{mask.label}.msk").exists() != inside
    truth = np.where(unlabelled, np.uint8(255), label)
    for pair in (mask, map_):
        found = count(pair, strip_pixels, maps_allowed=True)
        assert np.array_equal(found.confusion, brute_force((prediction == 1) & ~left_out, truth))
        assert found.unpredicted_px == int((left_out & ~unlabelled).sum())


def leave_out(uri: str, hidden: NDArray[np.bool_]) -> None:
    """Write the mask of a file, so that it has no pixel where `hidden`."""
    with rasterio.open(uri, "r+") as target:
        target.write_mask(~hidden)


def test_members_are_counted_as_brute_force_does(tmp_path: Path) -> None:
    shape, label = (48, 50), random_mask(9, (48, 50))
    maps = [random_map(10 + i, shape) for i in range(4)]
    maps[2][0:5] = np.nan
    folders = [tmp_path / f"members/m{i}/a.tif" for i in range(4)]
    uris = tuple(write_tiff(path, each, nodata=float("nan")) for path, each in zip(folders, maps, strict=True))
    mask = write_tiff(tmp_path / "a.tif", random_mask(8, shape, (0, 1)))
    pair = Pair("a", "Lodwar", write_tiff(tmp_path / "labels/a.tif", label), (Prediction(mask, members=uris),))
    found = count(pair, 500).members
    assert found is not None
    valid = label != 255
    given = ~np.isnan(np.stack(maps)).any(0)
    filled = np.nan_to_num(np.stack(maps)).astype(np.float64)

    def confusion(predicted: NDArray[np.bool_]) -> list[int]:
        kinds = ((1, 1), (1, 0), (0, 1), (0, 0))
        return [int((valid & (predicted == bool(p)) & (label == t)).sum()) for p, t in kinds]

    says = [(each >= 0.5) & given for each in filled]
    assert found.together.tolist() == confusion((filled.mean(0) >= 0.5) & given)
    for i in range(4):
        others = [each for j, each in enumerate(filled) if j != i]
        assert found.alone[i].tolist() == confusion(says[i])
        assert found.without[i].tolist() == confusion((np.sum(others, axis=0) / 3 >= 0.5) & given)
        assert found.differ[i].tolist() == [int(((says[i] != each) & valid).sum()) for each in says]
    votes = np.sum(says, axis=0)
    for k in range(5):
        assert found.votes[k].tolist() == [int(((votes == k) & (label == value)).sum()) for value in (0, 1)]


def test_strips_are_the_shorter_the_more_maps_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = write_tiff(tmp_path / "label.tif", random_mask(1, (64, 50)))
    uri = write_tiff(tmp_path / "map.tif", random_map(2, (64, 50)))
    mask = Prediction(write_tiff(tmp_path / "mask.tif", random_mask(3, (64, 50))))
    read, strips = [], masks.strips
    monkeypatch.setattr(masks, "strips", lambda *given: read.append(given[-1]) or strips(*given))
    for prediction in (mask, Prediction(mask.uri, uri), Prediction(mask.uri, uri, (uri, uri, uri))):
        count(Pair("a", "L", label, (prediction,)), 3000)
    assert read == [3000, 1500, 600]


# What is wrong


@pytest.mark.parametrize(
    ("prediction", "label", "kind", "found"),
    [
        (np.zeros((8, 9), np.uint8), GOOD, "size", "prediction of 9 x 8 px for a label of 8 x 8 px"),
        (GOOD * 2, GOOD, "values", "prediction values other than 0, 1 and 255: 2"),
        (GOOD, GOOD.astype(np.int16) * -7, "label-values", "label values other than 0, 1 and 255: -7"),
        (GOOD * np.float32(0.25), GOOD, "probabilities", "prediction of float32, .* are these probabilities"),
        (GOOD, GOOD.astype(np.float64), "label-values", "label of float64"),
        (np.stack([GOOD, GOOD]), GOOD, "unreadable", "prediction with 2 bands, expected one"),
        (GOOD, np.stack([GOOD, GOOD]), "label-unreadable", "label with 2 bands, expected one"),
    ],
)
def test_what_is_no_mask_is_named(
    tmp_path: Path, prediction: NDArray[Any], label: NDArray[Any], kind: str, found: str
) -> None:
    pair = pair_of(tmp_path, prediction, label)
    with pytest.raises(DataError, match=found) as caught:
        count(pair)
    assert str(tmp_path) in str(caught.value)
    _, oddities = tally.count_pairs([pair], [Reading()], EDGE_PX)
    assert [(each.kind, each.chip_id) for each in oddities] == [(kind, "adwp")]


def test_a_mask_of_another_place_is_named(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, GOOD, GOOD)
    for changes in ({"crs": "EPSG:32637"}, {"transform": TRANSFORM @ rasterio.Affine.translation(0, 1)}):
        with rasterio.open(pair.label) as source:
            profile = source.profile | changes
        with rasterio.open(pair.predictions[0].uri, "w", **profile) as target:
            target.write(GOOD, 1)
        with pytest.raises(DataError, match=r"prediction lies at \(.*\) in EPSG:.*, but the label at \("):
            count(pair)


def test_a_truncated_or_foreign_file_is_named(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, random_mask(0, (200, 200)), random_mask(1, (200, 200)))
    path = Path(pair.predictions[0].uri)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:4], b"", b"<VRTDataset/>"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="prediction is not a readable GeoTIFF") as caught:
            count(pair)
        assert str(path) in str(caught.value)
        swapped = Pair("a", "L", pair.predictions[0].uri, (Prediction(pair.label),))
        kinds = [tally.count_pairs([each], [Reading()], EDGE_PX)[1][0].kind for each in (pair, swapped)]
        assert kinds == ["unreadable", "label-unreadable"]


def test_a_file_that_is_gone_since_it_was_listed_is_missing_and_the_others_count(tmp_path: Path) -> None:
    gone, good = pair_of(tmp_path / "a", GOOD, GOOD), pair_of(tmp_path / "b", GOOD, GOOD)
    Path(gone.predictions[0].uri).unlink()
    tallies, oddities = tally.count_pairs([gone, good], [Reading()], EDGE_PX)
    assert [each.kind for each in oddities] == ["missing-prediction"]
    assert tallies[0].confusions.sum() == 64


def test_a_file_that_only_points_to_a_good_mask_is_not_followed(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, GOOD, GOOD)
    target, path = tmp_path / "elsewhere.tif", Path(pair.predictions[0].uri)
    path.rename(target)
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><GeoTransform>0, 10, 0, 0, 0, -10</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{target}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(DataError, match="prediction is not a readable GeoTIFF"):
        count(pair)


def test_other_integer_types_with_mask_values_are_masks(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, GOOD.astype(np.int16), np.where(GOOD, GOOD, 255).astype(np.uint16))
    assert count(pair).confusion.sum(0).tolist() == [8, 0, 0, 0]


# Pairs


def test_pairs_are_found_by_id_and_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("predictions/a", "predictions/b", "predictions/other", "labels/a", "labels/c", "against/a"):
        write_tiff(tmp_path / f"{name}.tif", GOOD)
    (tmp_path / "predictions/a.json").write_text("{}")
    ours, theirs, labels = (str(tmp_path / name) for name in ("predictions", "against", "labels"))
    sets = [predictions.find_predictions(ours)]
    pairs, oddities = predictions.pair_up(sets, labels, [row(name) for name in "abcd"])
    assert pairs == [Pair("a", "Lodwar", f"{labels}/a.tif", (Prediction(f"{ours}/a.tif"),))]
    found = [(each.chip_id, each.kind, each.found) for each in oddities]
    assert found == [
        ("b", "missing-label", f"no label b.tif in {labels}"),
        ("c", "missing-prediction", f"no prediction c.tif in {ours}"),
        ("d", "missing-prediction", f"no prediction d.tif in {ours}"),
        ("d", "missing-label", f"no label d.tif in {labels}"),
    ]
    write_tiff(tmp_path / "predictions/c.tif", GOOD)
    both = [predictions.find_predictions(uri) for uri in (ours, theirs)]
    pairs, oddities = predictions.pair_up(both, labels, [row(name) for name in "ac"])
    assert [pair.predictions for pair in pairs] == [(Prediction(f"{ours}/a.tif"), Prediction(f"{theirs}/a.tif"))]
    assert [each.found for each in oddities] == [f"no prediction c.tif in {theirs}"]


def test_a_folder_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "archive/labels/a.tif", GOOD)
    (tmp_path / "empty").mkdir()
    good = str(tmp_path / "archive/labels")
    with pytest.raises(ConfigError, match="no such folder"):
        predictions.find_predictions(str(tmp_path / "typo"))
    sets = [predictions.find_predictions(good)]
    with pytest.raises(ConfigError, match=r"without any \.tif"):
        predictions.pair_up(sets, str(tmp_path / "empty"), [row("a")])
    with pytest.raises(ConfigError, match=r"further down \(labels/a\.tif\)"):
        predictions.pair_up(sets, str(tmp_path / "archive"), [row("a")])
    with pytest.raises(ConfigError, match=r"nothing to evaluate.*no prediction b\.tif"):
        predictions.pair_up(sets, good, [row("b")])
    with pytest.raises(ConfigError, match=r"nothing to evaluate.*0 chosen rows.*\(the first: a: a blank place"):
        predictions.pair_up(sets, good, [], [DataError("a", "a blank place")])


def test_a_scored_archive_brings_its_maps_and_a_missing_one_is_a_missing_prediction(tmp_path: Path) -> None:
    settings = ScoreSettings(probability="uint8", disagreement="uint8", members="float32", threshold=0.4)
    scoring = Scoring(ensemble="e", members=("m1", "m2"), settings=settings)
    storage.write_bytes(str(tmp_path / "scoring.json"), json.dumps(scoring.model_dump(mode="json")).encode())
    for name in ("a", "b", "probability/a", "disagreement/a", "members/m1/a", "members/m2/a", "members/m1/b"):
        write_tiff(tmp_path / f"{name}.tif", GOOD)
    found = predictions.find_predictions(str(tmp_path))
    assert found.members == ("m1", "m2")
    assert found.of("a") == Prediction(
        f"{tmp_path}/a.tif",
        f"{tmp_path}/probability/a.tif",
        (f"{tmp_path}/members/m1/a.tif", f"{tmp_path}/members/m2/a.tif"),
        f"{tmp_path}/disagreement/a.tif",
    )
    write_tiff(tmp_path / "labels/a.tif", GOOD)
    write_tiff(tmp_path / "labels/b.tif", GOOD)
    pairs, oddities = predictions.pair_up([found], str(tmp_path / "labels"), [row("a"), row("b")])
    assert [pair.chip_id for pair in pairs] == ["a"]
    missing = f"no probability/b.tif in {tmp_path}, where it was asked for"
    assert [(each.kind, each.chip_id, each.found) for each in oddities] == [("missing-prediction", "b", missing)]


def test_a_map_of_a_member_may_only_lack_where_the_ledger_says_that_it_was_left_out(tmp_path: Path) -> None:
    scoring = Scoring(ensemble="e", members=("m1", "m2"), settings=ScoreSettings(members="uint8"))
    storage.write_bytes(str(tmp_path / "scoring.json"), json.dumps(scoring.model_dump(mode="json")).encode())
    for chip_id in "abc":
        for folder in (".", "members/m1", "members/m2", "labels"):
            write_tiff(tmp_path / folder / f"{chip_id}.tif", GOOD)
    for chip_id in "bc":
        (tmp_path / f"members/m2/{chip_id}.tif").unlink()
    left_out = {"b": ("m2",), "a": (), "c": ()}
    ledger.enter(str(tmp_path), [record_of(chip_id, names) for chip_id, names in left_out.items()])
    found = predictions.find_predictions(str(tmp_path))
    pairs, oddities = predictions.pair_up([found], str(tmp_path / "labels"), [row(chip_id) for chip_id in "abc"])
    assert [(pair.chip_id, len(pair.predictions[0].members)) for pair in pairs] == [("a", 2), ("b", 0)]
    missing = f"no members/m2/c.tif in {tmp_path}, where it was asked for"
    assert [(each.kind, each.chip_id, each.found) for each in oddities] == [("missing-prediction", "c", missing)]


def record_of(chip_id: str, left_out: tuple[str, ...]) -> Record:
    return Record(
        item_id=chip_id, kind="chip", source_uri="s", identity="i", settings_digest="d", outputs={},
        height=8, width=8, valid_px=64, cloud_px=8, members_left_out=left_out,
    )  # fmt: skip


def test_a_threshold_takes_the_place_of_the_mask(tmp_path: Path) -> None:
    label = GOOD
    mask = write_tiff(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    probability = write_tiff(tmp_path / "probability/a.tif", GOOD * np.float32(0.7), nodata=float("nan"))
    pair = Pair("a", "L", write_tiff(tmp_path / "labels/a.tif", label), (Prediction(mask, probability),))
    assert count(pair).confusion.sum(0).tolist() == [0, 0, 8, 56]
    assert count(pair, threshold=0.6, by_map=True).confusion.sum(0).tolist() == [8, 0, 0, 56]
    assert count(pair, threshold=0.8, by_map=True).confusion.sum(0).tolist() == [0, 0, 8, 56]
    bare = Pair("a", "L", pair.label, (Prediction(mask),))
    with pytest.raises(DataError, match="a mask, where --threshold wants probabilities"):
        count(bare, threshold=0.6, by_map=True, maps_allowed=True)
    _, oddities = tally.count_pairs([bare], [Reading(threshold=0.6, by_map=True, maps_allowed=True)], EDGE_PX)
    assert [each.kind for each in oddities] == ["no-probabilities"], "not what was allowed already"


def test_two_ways_of_predicting_are_counted_on_the_same_labels(tmp_path: Path) -> None:
    label = random_mask(1, (40, 40))
    uris = [write_tiff(tmp_path / f"{i}.tif", random_mask(2 + i, (40, 40))) for i in range(2)]
    pair = Pair("a", "L", write_tiff(tmp_path / "label.tif", label), tuple(Prediction(uri) for uri in uris))
    found = masks.count_pair(pair, [Reading(), Reading()], EDGE_PX)
    for i, each in enumerate(found):
        alone = Pair("a", "L", pair.label, (pair.predictions[i],))
        assert np.array_equal(each.confusion, count(alone).confusion)
    assert not np.array_equal(found[0].confusion, found[1].confusion)
