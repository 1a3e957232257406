"""Laws of the tile plan and of stitching."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.stitch import Stitcher, winners
from cegate_geo.infer.tiles import Axis, TilePlan, falling, plan_axis, rising, shard_windows


@st.composite
def axes(draw: st.DrawFn) -> tuple[Axis, int]:
    size = draw(st.integers(1, 60))
    halo = draw(st.integers(0, (size - 1) // 2))
    stitch = draw(st.sampled_from(["blend", "crop"]))
    return plan_axis(draw(st.integers(1, 400)), size=size, halo=halo, stitch=stitch), halo


@settings(deadline=None)
@given(axes())
def test_cores_and_final_parts_partition_the_axis(case: tuple[Axis, int]) -> None:
    axis, _ = case
    for part in (axis.core, axis.final):
        covered = [p for n in range(len(axis)) for p in range(*part(n))]
        assert covered == list(range(axis.length))


@settings(deadline=None)
@given(axes())
def test_weights_sum_to_exactly_one_with_two_tiles_at_most(case: tuple[Axis, int]) -> None:
    axis, _ = case
    total, tiles = np.zeros(axis.length, np.float32), np.zeros(axis.length, int)
    for n in range(len(axis)):
        start, stop = axis.support(n)
        weights = axis.weights(n)
        total[start:stop] += weights
        tiles[start:stop] += 1
        assert weights.min() > 0
    assert (total == 1).all()
    assert tiles.max() <= 2


@settings(deadline=None)
@given(axes())
def test_tiles_stay_on_the_axis_and_see_their_context(case: tuple[Axis, int]) -> None:
    axis, halo = case
    assert axis.offsets[0] == 0
    for n, offset in enumerate(axis.offsets):
        assert offset + axis.size <= axis.length or len(axis) == 1
        core, support = axis.core(n), axis.support(n)
        if n:
            assert core[0] - offset >= halo
            assert support[0] - offset >= halo // 2
        if n < len(axis) - 1:
            assert offset + axis.size - core[1] >= halo
            assert offset + axis.size - support[1] >= halo // 2


@settings(deadline=None)
@given(st.integers(0, 300).map(lambda n: 2 * n))
def test_ramps_are_complementary_without_rounding(ramp: int) -> None:
    assert (rising(ramp) + falling(ramp) == 1).all()
    assert (np.diff(rising(ramp)) >= 0).all()


def test_wide_overlap_gives_a_ramp_of_the_halo() -> None:
    axis = plan_axis(10_000, size=512, halo=64)
    assert axis.ramp >= 64
    assert plan_axis(10_000, size=512, halo=64, stitch="crop").ramp == 0


def test_no_more_tiles_than_needed() -> None:
    assert len(plan_axis(512, size=512, halo=64)) == 1
    assert len(plan_axis(513, size=512, halo=64)) == 2
    assert len(plan_axis(512 + 384, size=512, halo=64)) == 2
    assert len(plan_axis(512 + 385, size=512, halo=64)) == 3


@pytest.mark.parametrize(("length", "size", "halo"), [(0, 8, 1), (8, 0, 0), (9, 8, 4), (8, 8, -1)])
def test_impossible_plans_are_refused(length: int, size: int, halo: int) -> None:
    with pytest.raises(InputError):
        plan_axis(length, size=size, halo=halo)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    sizes = draw(st.tuples(st.integers(3, 24), st.integers(3, 24)))
    return TilePlan.of_shape(
        draw(st.tuples(st.integers(1, 90), st.integers(1, 90))),
        tile_shape=sizes,
        halo=draw(st.integers(0, (min(sizes) - 1) // 2)),
        stitch=draw(st.sampled_from(["blend", "crop"])),
    )


@st.composite
def regions(draw: st.DrawFn, plan: TilePlan) -> Window:
    height, width = plan.shape
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(
        row_off=row,
        col_off=col,
        height=draw(st.integers(1, height - row)),
        width=draw(st.integers(1, width - col)),
    )


def stitched(plan: TilePlan, region: Window, scores: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """What the stitcher makes of scores by tile; each pixel may be given once only."""
    stitcher = Stitcher(plan, region, classes=2)
    result = np.full((2, *plan.shape), np.nan, np.float32)
    for row in stitcher.rows:
        for col in stitcher.cols:
            block = stitcher.add(plan.tile(row, col), scores[row, col].copy())
            if block is not None:
                rows, cols = block.window.slices(Window.of_shape(plan.shape))
                assert np.isnan(result[:, rows, cols]).all(), "a pixel was given twice"
                result[:, rows, cols] = block.probabilities
    return result


@settings(deadline=None)
@given(st.data())
def test_stitching_equals_the_weighted_sum_over_all_tiles(data: st.DataObject) -> None:
    """Oracle: the plain sum of weight times score, in double precision."""
    plan = data.draw(plans())
    random = np.random.default_rng(0)
    scores = {(t.row, t.col): random.random((2, *plan.tile_shape), np.float32) for t in plan}
    expected = np.zeros((2, *plan.shape))
    for tile in plan:
        rows, cols = tile.support.slices(tile.window)
        weight = np.outer(plan.rows.weights(tile.row).astype(float), plan.cols.weights(tile.col))
        where = tile.support.slices(Window.of_shape(plan.shape))
        expected[(slice(None), *where)] += weight * scores[tile.row, tile.col][:, rows, cols]
    np.testing.assert_allclose(stitched(plan, Window.of_shape(plan.shape), scores), expected, atol=1e-6)


@settings(deadline=None)
@given(st.data())
def test_a_shard_has_the_same_bits_as_the_whole(data: st.DataObject) -> None:
    plan = data.draw(plans())
    region = data.draw(regions(plan))
    random = np.random.default_rng(1)
    scores = {(t.row, t.col): random.random((2, *plan.tile_shape), np.float32) for t in plan}
    whole, part = stitched(plan, Window.of_shape(plan.shape), scores), stitched(plan, region, scores)
    inside = np.zeros(plan.shape, bool)
    inside[region.slices(Window.of_shape(plan.shape))] = True
    np.testing.assert_array_equal(part[:, inside], whole[:, inside])
    assert np.isnan(part[:, ~inside]).all()


@settings(deadline=None)
@given(st.data())
def test_shards_partition_the_raster(data: st.DataObject) -> None:
    plan = data.draw(plans())
    count = np.zeros(plan.shape, int)
    largest = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    region, align = data.draw(regions(plan)), data.draw(st.integers(1, 16))
    for shard in shard_windows(plan.shape, largest=largest, align=align, within=region):
        count[shard.slices(Window.of_shape(plan.shape))] += 1
        assert shard.height <= max(largest[0], align)
        assert shard.width <= max(largest[1], align)
        for first, last, edges in (
            (shard.row_off, shard.row_end, (region.row_off, region.row_end)),
            (shard.col_off, shard.col_end, (region.col_off, region.col_end)),
        ):
            assert all(edge % align == 0 or edge in edges for edge in (first, last))
    inside = np.zeros(plan.shape, bool)
    inside[region.slices(Window.of_shape(plan.shape))] = True
    np.testing.assert_array_equal(count, inside)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(0, 9))
def test_winners_are_argmax(classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (classes, 5, 7)).astype(np.float32)
    index, best = winners(scores)
    np.testing.assert_array_equal(index, scores.argmax(axis=0))
    np.testing.assert_array_equal(best, scores.max(axis=0))
