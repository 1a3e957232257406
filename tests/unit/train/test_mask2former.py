"""Laws of the Mask2Former head: the published network, a loss that knows pixels without a label, a plain graph."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch.nn import functional as F

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import ConfigError, RuntimeMissingError
from cegate_geo.peft import ToolboxConfig, attach, fisher_scores
from cegate_geo.train import query_loss as losses
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.config import AdaptConfig, ModelConfig, QueryConfig, SourceConfig, TrainConfig
from cegate_geo.train.export import export_model
from cegate_geo.train.heads import make_head
from cegate_geo.train.job import _optimizer
from cegate_geo.train.mask2former import Mask2FormerHead, Positions, QueryPredictions, complete
from cegate_geo.train.query_loss import Amounts, query_loss
from cegate_geo.train.run import new_run
from cegate_geo.train.segmenter import Segmenter
from cegate_geo.train.steps import training_loss

if os.environ.get("CI") != "true":
    pytest.importorskip("scipy", reason="the extra mask2former is not installed")
    pytest.importorskip("transformers", reason="the extra mask2former is not installed")

TINY = QueryConfig(queries=6, pixel_layers=1, decoder_layers=2)
SIDE = 64


def head(levels: int = 4, classes: int = 3, in_dim: int = 12) -> Mask2FormerHead:
    torch.manual_seed(0)
    return Mask2FormerHead(in_dim=in_dim, levels=levels, dim=32, classes=classes, sizes=TINY)


def maps(height: int = 4, width: int = 4, levels: int = 4, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 12, height, width, generator=generator) for _ in range(levels)]


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", depth=4, embed_dim=32, num_heads=2, num_classes=0, img_size=SIDE, dynamic_img_size=True
    )
    return Segmenter(vit, BackboneSpec(architecture="toy"), head="mask2former", head_dim=32, classes=3, queries=TINY)


def moved(model: Segmenter) -> Segmenter:
    """Away from the start, so that what starts at zero shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Chips of two classes each; half of the second has no label."""
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    labels[0, 20:50] = 2
    labels[1, :, 10:30] = 1
    labels[1, 32:] = 255
    return images, labels


@pytest.mark.parametrize("classes", [6, 7])
def test_its_parameters_are_the_published_ones_to_the_digit(classes: int) -> None:
    """20.56 M at 4 x 1024 channels, width 256, 100 queries; the sum, part by part, from the paper's structure."""
    with torch.device("meta"):
        built = make_head("mask2former", in_dim=1024, levels=4, dim=256, classes=classes)
    linear = 256 * 256 + 256
    pixel_layer = (256 * 192 + 192) + (256 * 96 + 96) + 2 * linear + 2 * 512 + (256 * 1024 + 1024) + (1024 * 256 + 256)
    pixels = 4 * (1024 * 256 + 512) + 3 * 256 + (9 * 256 * 256 + 512) + 3 * 256 + linear + 6 * pixel_layer
    layer = 8 * linear + 3 * 512 + (256 * 2048 + 2048) + (2048 * 256 + 256)
    queries = 2 * 100 * 256 + 3 * 256 + 9 * layer + 512 + 3 * linear + 257 * (classes + 1)
    count = sum(p.numel() for p in built.parameters())
    assert count == pixels + queries == 20_560_064 + 257 * (classes + 1)
    assert round(count / 1e6, 2) == 20.56


@pytest.mark.parametrize(("levels", "shape"), [(4, (4, 4)), (4, (5, 7)), (2, (6, 4))])
def test_there_is_a_prediction_before_and_after_each_layer_on_the_finest_grid(
    levels: int, shape: tuple[int, int]
) -> None:
    built = head(levels).eval()
    with torch.no_grad():
        found = built.predictions(maps(*shape, levels=levels))
        logits = built(maps(*shape, levels=levels), torch.zeros(2, 3, 16 * shape[0], 16 * shape[1]))
    assert len(found.classes) == len(found.masks) == 3
    assert {tuple(c.shape) for c in found.classes} == {(2, 6, 4)}
    assert {tuple(m.shape) for m in found.masks} == {(2, 6, 4 * shape[0], 4 * shape[1])}
    assert logits.shape == (2, 3, 16 * shape[0], 16 * shape[1])


def test_narrowing_before_resampling_is_narrowing_after_it() -> None:
    """And the maps have strides 4, 8, 16, 32, where the tokens have 16."""
    built = head().eval()
    seen: list[list[torch.Tensor]] = []
    built.pixels.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        built.predictions(maps(6, 8))
        expected = [
            narrow(F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False))
            for narrow, x, factor in zip(built.narrow, maps(6, 8), (4, 2, 1, 0.5), strict=True)
        ]
    for found, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (5, 7), (1, 3)])
def test_position_embeddings_are_the_librarys(shape: tuple[int, int]) -> None:
    from transformers.models.mask2former import modeling_mask2former as library

    embedding = library.Mask2FormerSinePositionEmbedding(16, normalize=True)
    size = torch.Size((2, 12, *shape))
    expected = embedding(size, torch.device("cpu"), torch.float32)
    found = Positions(32)(size, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(found.expand(2, -1, -1, -1), expected)


def test_nothing_starts_at_random_memory_or_at_a_norm_that_is_none() -> None:
    first, second = head(), head()
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert float(a.detach().abs().max()) < 6, name
    for name, module in first.named_modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
            assert bool((module.weight == 1).all()), name
            assert bool((module.bias == 0).all()), name
    assert first.pixels.level_embed.std() > 0.5
    rays = first.pixels.encoder.layers[0].self_attn.sampling_offsets.bias
    torch.testing.assert_close(rays.view(3, 4, 2)[0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))


def test_a_softmax_of_the_logits_is_the_share_of_a_class_in_the_scores() -> None:
    built = head().eval()
    with torch.no_grad():
        found = built.predictions(maps())
        logits = built(maps(), torch.zeros(2, 3, 16, 16))
    classes, masks = found.classes[-1].double().softmax(-1)[..., :-1], found.masks[-1].double().sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
    torch.testing.assert_close(logits.double().exp(), scores, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logits.softmax(1).double(), scores / scores.sum(1, keepdim=True), atol=1e-6, rtol=1e-4)


def test_where_no_query_claims_a_pixel_all_classes_are_equally_likely() -> None:
    built = head().eval()
    found = QueryPredictions((torch.randn(1, 6, 4),), (torch.full((1, 6, 8, 8), -40.0),))
    built.predictions = lambda _: found  # type: ignore[method-assign]
    logits = built(maps(2, 2, batch=1), torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(logits.softmax(1), torch.full((1, 3, 32, 32), 1 / 3))


def test_every_parameter_learns_also_where_chips_have_no_label(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Processes sum their gradients: one that has none of a parameter would sum others' into the next one."""
    model = moved(segmenter()).train()
    loss = training_loss(model.learn_from(batch[0]), batch[1])
    loss.backward()
    silent = [n for n, p in model.head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    model.zero_grad(set_to_none=True)
    loss = training_loss(model.learn_from(batch[0]), torch.full_like(batch[1], 255))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in model.head.parameters())


def random_predictions(height: int, width: int, *, chips: int = 1, queries: int = 6) -> QueryPredictions:
    generator = torch.Generator().manual_seed(3)
    classes = [torch.randn(chips, queries, 4, generator=generator, requires_grad=True) for _ in range(2)]
    masks = [2 * torch.randn(chips, queries, height, width, generator=generator) for _ in range(2)]
    return QueryPredictions(tuple(classes), tuple(m.requires_grad_() for m in masks))


def test_costs_and_dice_are_those_of_the_library() -> None:
    from transformers.models.mask2former import modeling_mask2former as library

    generator = torch.Generator().manual_seed(0)
    logits, probabilities = torch.randn(6, 50, generator=generator), torch.rand(6, 2, generator=generator)
    targets = torch.randint(0, 2, (2, 50), generator=generator).float()
    expected = 5 * library.pair_wise_sigmoid_cross_entropy_loss(logits, targets)
    expected += 5 * library.pair_wise_dice_loss(logits, targets) - 2 * probabilities
    torch.testing.assert_close(losses.costs(probabilities, logits, targets), expected)
    torch.testing.assert_close(losses.dice(logits[:2], targets).sum(), library.dice_loss(logits[:2], targets, 1))


def test_on_chips_that_are_labelled_all_over_the_loss_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to which points are drawn: of very many, both see the same."""
    from transformers.models.mask2former import modeling_mask2former as library

    monkeypatch.setattr(losses, "POINTS", 60_000)
    monkeypatch.setattr(losses, "REFERENCE", 256 * 256)
    labels = torch.zeros(2, 256, 256, dtype=torch.int64)
    labels[0, 64:200] = 2
    labels[1, :, 128:] = 1
    labels[1, :50, :50] = 2
    found = random_predictions(8, 8, chips=2)
    config = library.Mask2FormerConfig(num_labels=3, train_num_points=60_000)
    criterion = library.Mask2FormerLoss(config, {})
    present = [chip.unique() for chip in labels]
    torch.manual_seed(0)
    parts = criterion(
        found.masks[1],
        found.classes[1],
        [(chip == p[:, None, None]).float() for chip, p in zip(labels, present, strict=True)],
        present,
        [{"masks_queries_logits": found.masks[0], "class_queries_logits": found.classes[0]}],
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    expected = sum(v.item() * next(w for k, w in weights.items() if name.startswith(k)) for name, v in parts.items())
    assert len(parts) == 6
    assert query_loss(found, labels).item() == pytest.approx(expected, rel=5e-3)


def test_what_masks_say_where_nothing_is_labelled_is_not_learned_from() -> None:
    labels = torch.full((1, 64, 64), 255)
    labels[0, :, :32] = 0
    labels[0, :20, :32] = 1
    found = random_predictions(16, 16)
    query_loss(found, labels, seeds=[4]).backward()
    for masks in found.masks:
        assert masks.grad is not None
        assert masks.grad[..., :8].abs().sum() > 0
        assert float(masks.grad[..., 9:].abs().max()) == 0  # column 8 is a neighbour of labelled pixels


def test_a_query_without_a_match_is_no_object_as_far_as_its_mask_lies_on_labels() -> None:
    labels = torch.full((1, 64, 64), 255)
    labels[0, :, :32] = 0
    masks = torch.full((1, 4, 16, 16), -20.0)
    masks[0, 0, :, :8] = 20.0  # the one that is matched
    masks[0, 1, :, :8] = 20.0  # on labels
    masks[0, 2, :, 8:] = 20.0  # elsewhere
    masks[0, 3] = 20.0  # half and half
    classes = torch.zeros(1, 4, 3, requires_grad=True)
    with torch.no_grad():
        classes[0, 0, 0] = 1.0
    query_loss(QueryPredictions((classes,), (masks,)), labels).backward()
    assert classes.grad is not None
    matched, on, elsewhere, half = classes.grad[0, :, -1].tolist()
    assert matched > 0 > on
    assert elsewhere == pytest.approx(0, abs=1e-6)
    assert half == pytest.approx(on / 2, rel=1e-3)
    weight = 1 + 0.1 * 3
    assert on == pytest.approx(2 * 0.1 * (1 / 3 - 1) / weight, rel=1e-4)


def test_losses_of_parts_add_up_to_that_of_the_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Whatever the share of labels: in parts of a batch, and in several processes."""
    labels = torch.cat([batch[1], torch.full_like(batch[1][:1], 255)])
    found = random_predictions(16, 16, chips=3)
    amounts = Amounts.of(labels)
    assert amounts == (SIDE * SIDE * 1.5, 4, 2)
    whole = query_loss(found, labels, seeds=[5, 6, 7])
    parts = [
        query_loss(
            QueryPredictions(tuple(c[n : n + 1] for c in found.classes), tuple(m[n : n + 1] for m in found.masks)),
            labels[n : n + 1],
            amounts=amounts,
            seeds=[5 + n],
        )
        for n in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    assert parts[2].item() == 0
    assert query_loss(found, labels, seeds=[5, 6, 7]).item() == whole.item()
    assert query_loss(found, labels, seeds=[8, 6, 7]).item() != whole.item()


def test_scores_of_the_gate_do_not_flicker(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = segmenter()
    toolbox = attach(model.backbone, ToolboxConfig(kinds=("semantic",), semantic_dim=4))
    samples = [(batch[0][n : n + 1], batch[1][n : n + 1], n) for n in range(2)]

    def loss_of(sample: tuple[torch.Tensor, torch.Tensor, int]) -> torch.Tensor:
        return training_loss(model.learn_from(sample[0]), sample[1], seeds=[sample[2]])

    first, second = (fisher_scores(toolbox, samples, loss_of, model=model) for _ in range(2))
    assert first == second
    assert min(first.values()) > 0


def test_in_bf16_the_places_to_sample_at_stay_in_float32() -> None:
    built = head().eval()
    kinds: list[torch.dtype] = []
    attention = built.pixels.encoder.layers[0].self_attn
    attention.sampling_offsets.register_forward_hook(lambda *given: kinds.append(given[2].dtype))
    with torch.no_grad():
        expected = built(maps(), torch.zeros(2, 3, 64, 64)).softmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            found = built(maps(), torch.zeros(2, 3, 64, 64)).softmax(1)
    assert kinds == [torch.float32] * 2
    assert found.dtype == torch.float32
    assert float((found - expected).abs().mean()) < 0.02


def test_embeddings_are_not_decayed(tmp_path: Path) -> None:
    sizes = QueryConfig(queries=5, pixel_layers=1, decoder_layers=2)
    model = ModelConfig(
        backbone="test_vit2.r160_in1k",
        weights="random",
        head="mask2former",
        head_dim=32,
        tile_size=64,
        mask2former=sizes,
    )
    source = SourceConfig(images="", labels="")
    run = new_run(tmp_path, AdaptConfig(classes={0: "a", 1: "b"}, source=(source,), model=model))
    built = run.segmenter.head
    decayed = {id(p) for g in _optimizer(run, TrainConfig()).param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in built.named_parameters() if p.ndim > 1 and id(p) not in decayed}
    assert names == {
        "pixels.level_embed",
        "queries.level_embed.weight",
        "queries.queries_embedder.weight",
        "queries.queries_features.weight",
    }


def test_onnxruntime_computes_what_torch_computes(tmp_path: Path) -> None:
    """With weights in half precision, which the traced model holds in single."""
    model = moved(segmenter()).eval()
    tiles = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    manifest = Manifest(
        name="toy",
        legend=Legend.from_names(["a", "b", "c"]),
        bands=("red", "green", "blue"),
        gsd_m=0.5,
        gsd_range_m=(0.4, 0.6),
        tile_size=SIDE,
        halo=8,
    )
    report = export_model(model, manifest, tmp_path / "model.onnx", sample=tiles, precision="fp16")
    assert report.parity["max_abs"] < 1e-3
    assert report.parity["tiles"] == 3
    graph = onnx.load(tmp_path / "model.onnx")
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    operators = {node.op_type for node in graph.graph.node}
    assert "GridSample" in operators
    assert not operators & {"RandomUniform", "RandomUniformLike", "If", "Loop", "NonZero", "CumSum"}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": tiles.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(tiles).softmax(1).numpy(), atol=2e-2)


def test_narrow_heads_are_small_and_what_is_said_counts() -> None:
    assert complete(QueryConfig(), 256) == (100, 6, 9)
    assert complete(QueryConfig(decoder_layers=6), 64) == (50, 3, 6)
    assert len(head().queries.decoder.layers) == 2
    assert len(head().pixels.encoder.layers) == 1


def test_sizes_that_can_not_be_built_are_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"head_dim = 40 is no multiple of 32"):
        make_head("mask2former", in_dim=12, levels=4, dim=40, classes=3)
    with pytest.raises(ConfigError, match=r"queries = 6, but there are 7 classes"):
        make_head("mask2former", in_dim=12, levels=4, dim=32, classes=7, queries=TINY)
    with pytest.raises(ConfigError, match=r"pixel_layers = 0 is no size"):
        QueryConfig(pixel_layers=0)


@pytest.mark.parametrize("missing", ["transformers", "scipy"])
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeMissingError, match=missing) as caught:
        head()
    assert "cegate-geo[mask2former]" in caught.value.hint
