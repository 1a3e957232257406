"""The configuration of `cegate-geo adapt`: one dataclass a table of the TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cegate_geo.domain.legend import Legend
from cegate_geo.errors import ConfigError
from cegate_geo.train.byte_rasters import UnlabelledSource
from cegate_geo.train.raster_input import RGB_BANDS, Band, InputConfig, require_same_count, require_scale

Method = Literal[
    "gate",
    "frozen",
    "full",
    "lora",
    "adaptformer",
    "earth-adapter",
    "rein",
    "vpt",
    "all",
    "random",
    "fixed",
    "grad-norm",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """[[source]] or [[validation]]: labelled rasters."""

    images: str
    """Path or glob pattern of rasters."""
    labels: str
    """Polygons or class rasters, in any CRS and on any grid: a path, a pattern that gives one file per image in sorted
    order, or a path with `{}` for what the wildcards in the file name of `images` stand for: "a/*_sat.jpg" has
    "a/{}_mask.png"."""
    name: str = ""
    label_field: str = ""
    """Field of the polygons that holds the class name or id; empty: every polygon is `label_class`."""
    label_class: str = ""
    """Class of polygons without a field; empty: the last class of the legend."""
    background: str = ""
    """Class of pixels that no polygon covers; empty: the first class of the legend; "ignore": they do not count.
    Beyond the rectangle around the polygons nothing counts, unless aoi, rows or cols say what is labelled."""
    remap: Mapping[str, str] = field(default_factory=dict)
    """Value, name or '#rrggbb' in the labels → class name, or "ignore"; "*" is everything else, "" an empty field."""
    aoi: str = ""
    """Polygons of the area that is labelled; outside it labels are ignored."""
    rows: tuple[int, int] | None = None
    """First and last-but-one row (of the raster) that may be used, for splits by hand."""
    cols: tuple[int, int] | None = None
    bands: tuple[Band, ...] = ()
    """Bands by number, from 1, or by name, in the order of the model's; three by number are red, green, blue. Empty: by
    the names of `input.bands`, else as the first source, but 1, 2, 3 where that has red, green, blue by number."""
    scale: float | None = None
    """Raster value that becomes 1; empty: `input.scale`. Sources of different types need one each."""
    nodata: tuple[float, ...] = ()
    """Value of holes that carry no flag, one per band or one for all."""
    gsd_m: float | None = None
    """Metres per pixel of rasters that do not say where they lie."""
    weight: float = 1.0
    """Share of the chips relative to other sources."""

    def __post_init__(self) -> None:
        if self.gsd_m is not None and not self.gsd_m > 0:
            raise ConfigError(f"gsd_m = {self.gsd_m} is no size of a pixel.", hint="Give metres, more than 0.")
        require_scale(self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """[[target]]: unlabelled rasters of where the model is to work; see `SelfTrainingConfig`."""

    images: str
    """Path or glob pattern of rasters."""
    name: str = ""
    aoi: str = ""
    """Polygons of the area that is used."""
    leave_out: str = ""
    """Polygons of what is not: places to measure on, above all."""
    bands: tuple[Band, ...] = ()
    """As in a [[source]]."""
    scale: float | None = None
    """As in a [[source]]."""
    nodata: tuple[float, ...] = ()
    """Value of holes that carry no flag, one per band or one for all."""
    remap: Mapping[str, str] = field(default_factory=dict)
    """Class of the teacher → class name here, or "ignore"; needed where the teacher's classes have other names."""
    weight: float = 1.0
    """Share of the chips relative to other targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTrainingConfig:
    """[self_training]: where a teacher is sure of what it sees in the targets, its predictions are labels.

    Labels are made before the first step, into `targets/` of the run; nothing of the targets is used for validation.
    """

    teacher: str = ""
    """ONNX file, or folder of a run that was exported: usually one that was adapted to the same sources."""
    threshold: float = 0.9
    """Least probability of the winning class."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Class of the teacher → its own threshold."""
    share: float = 1.0
    """At most this share of the predicted pixels of each class is kept: the surest, so that classes that are hard to be
    sure of are not crowded out. 1 keeps all above the threshold."""
    weight: float = 0.5
    """Share of the chips that come from targets."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ConfigError(f"self_training.weight = {self.weight} is no share.", hint="It lies between 0 and 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryConfig:
    """[model.mask2former]: sizes of that head.

    What is left out is as published for a head_dim of 256 and more (100 queries, 6 and 9 layers), and smaller for less
    (50, 3 and 3).
    """

    queries: int | None = None
    """Queries, each of which says a class and draws a mask; at least as many as there are classes."""
    pixel_layers: int | None = None
    """Layers of deformable attention between the maps."""
    decoder_layers: int | None = None
    """Layers of attention of the queries to the maps."""

    def __post_init__(self) -> None:
        sizes = {"queries": self.queries, "pixel_layers": self.pixel_layers, "decoder_layers": self.decoder_layers}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"model.mask2former.{name} = {value} is no size.", hint="Use 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: backbone and head."""

    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    """timm name."""
    weights: str = ""
    """Local weights file; empty: the hub; "shipped": the small base of models/; "random": none. A checkpoint of
    CrossEarth goes with peft.method = "rein", which starts from its modules."""
    head: Literal["linear", "dpt", "dpt-detail", "dpt-unet", "upernet", "mask2former"] = "dpt"
    """mask2former needs the extra of that name (transformers, scipy)."""
    head_dim: int = 128
    """Width of the head; a multiple of 8, of 32 for mask2former."""
    norm: Literal["batch", "group"] = "batch"
    """What the head normalises by. batch: statistics of the training data, kept while training. group: each tile's own,
    which follow it to other light and need no steps to settle, but stretch the faint contrast of a bare tile.
    mask2former has norms of its own."""
    mask2former: QueryConfig = field(default_factory=QueryConfig)
    tile_size: int = 512
    """Side of the exported model's input in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialConfig:
    """LoRA on q and v."""

    rank: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticConfig:
    """Adapter beside the MLP."""

    dim: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyConfig:
    """Earth-Adapter."""

    dim: int = 32
    cutoff: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinConfig:
    """Rein: learnable tokens in each layer, as factors of a rank (0 = in full)."""

    tokens: int = 100
    rank: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VptConfig:
    """Deep prompts in each layer."""

    tokens: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """[peft]: which modules there are, and how the gate chooses."""

    method: Method = "gate"
    budget: float | None = None
    """Share of all modules that is active at a time. Empty: for "gate" 1, all, the best share in docs/benchmark.md, and
    nothing is chosen; for the other methods that choose 0.25, the paper's. See `patch_embed`, too."""
    every: int = 100
    """Steps between two selections."""
    samples: int = 16
    """Chips that a selection is scored on."""
    start: int = 0
    """Steps before the first selection. No module is trained in them: the head, random at first, learns alone, so that
    the first scores say more of the modules than of its noise. 0, as in arXiv 2511.20302: none."""
    until: float = 1.0
    """Share of the steps after which the choice stays as it is; 0: it is made once, as by the method "fixed"."""
    normalise: Literal["type", "size", "none"] = "type"
    """What makes scores of modules of different types comparable. type, as in arXiv 2511.20302: divided by the sum over
    all blocks of its type. size: divided by the number of the module's parameters. none: as they are."""
    memory: float = 0.0
    """Share of the earlier scores in those that decide, 0 or more and less than 1: with m, the normalised scores x_t of
    a selection become s_t = m s_(t-1) + (1 - m) x_t. 0, as in arXiv 2511.20302: the newest alone."""
    quota: Literal["global", "type"] = "global"
    """How the budget is shared. global, as in arXiv 2511.20302: the highest scores of all. type: evenly between the
    module types, what does not divide by score. Holds for the method "random", too."""
    inactive: Literal["frozen", "bypass"] = "frozen"
    patch_embed: bool | None = None
    """Whether the backbone's projection of patches is trained, too, from the first step to the last at
    `train.backbone_lr`: colours come in there, where no module reaches. Empty: with the method "gate" where the budget
    leaves nothing to choose, as measured best in docs/benchmark.md; else not, as in arXiv 2511.20302. With the method
    "full" it always is."""
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)
    rein: ReinConfig = field(default_factory=ReinConfig)
    vpt: VptConfig = field(default_factory=VptConfig)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.every < 1 or self.samples < 1:
            raise ConfigError(
                f"[peft] has budget={self.budget}, every={self.every}, samples={self.samples}.",
                hint="budget lies in (0, 1]; every and samples are at least 1.",
            )
        if self.start < 0 or not 0 <= self.until <= 1 or not 0 <= self.memory < 1:
            raise ConfigError(
                f"[peft] has start={self.start}, until={self.until}, memory={self.memory}.",
                hint="start is 0 or more; until lies in [0, 1], memory in [0, 1).",
            )

    @property
    def share(self) -> float:
        """The budget, settled: more than 0, at most 1."""
        if self.budget is None:
            return 1.0 if self.method == "gate" else 0.25
        return self.budget

    @property
    def trains_patch_embed(self) -> bool:
        """`patch_embed`, settled."""
        is_default = self.method == "gate" and self.share == 1
        return self.method == "full" or (is_default if self.patch_embed is None else self.patch_embed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """[train]: how to train."""

    steps: int = 2000
    batch_size: int = 4
    """Chips of a step."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: less memory, the same step but for the head's batch
    normalisation, whose statistics are those of a part."""
    checkpointing: bool = False
    """Whether activations of the backbone are computed again instead of kept: less memory, a third more time."""
    crop: int = 512
    """Side of a chip in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Chips are cut at `crop` times a factor in this range, and resampled."""
    lr: float = 5e-5
    """Learning rate of the modules."""
    head_lr: float | None = None
    """Learning rate of the head; empty: as `lr`."""
    backbone_lr: float | None = None
    """Learning rate of what is trained of the backbone itself; empty: `lr` with the method "full", else a tenth."""
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and exported; 0 turns them off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    photometric: float = 1.0
    """Strength of colour augmentation; 0 turns it off."""
    style: float = 0.5
    """Share of the chips that get the look of a [[style]] chip, where there are any."""
    style_method: Literal["histogram", "fourier", "both"] = "histogram"
    """How looks are put on: by matching histograms, by low frequencies of the Fourier transform, or by turns."""
    balance: float = 0.5
    """Share of the chips that is drawn around a class chosen evenly, instead of anywhere."""
    validation: float = 0.15
    """Share of the labelled area that is held out, in spatial blocks, where no [[validation]] is given."""
    validate_every: int = 250
    patience: int = 0
    """Validations in a row without a new best after which training stops; 0: never."""
    save_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_size % self.accumulate or self.patience < 0:
            raise ConfigError(
                f"[train] has batch_size={self.batch_size}, accumulate={self.accumulate}, patience={self.patience}.",
                hint="accumulate divides batch_size; patience is 0 or more.",
            )
        if self.steps < 1 or self.batch_size < 1 or self.crop < 16 or not 0 <= self.validation < 1:
            raise ConfigError(
                f"[train] has steps={self.steps}, batch_size={self.batch_size}, crop={self.crop}, "
                f"validation={self.validation}.",
                hint="steps and batch_size are at least 1, crop at least 16, validation lies in [0, 1).",
            )
        if not 0 <= self.style <= 1:
            raise ConfigError(f"train.style = {self.style} is no share.", hint="It lies between 0 and 1.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"train.scale = {list(self.scale)} is no range.", hint="Write [smallest, largest].")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """A whole adaptation."""

    classes: Mapping[int, str]
    """Id → name."""
    source: tuple[SourceConfig, ...]
    colors: Mapping[str, str] = field(default_factory=dict)
    """Class name → '#rrggbb'."""
    validation: tuple[SourceConfig, ...] = ()
    target: tuple[TargetConfig, ...] = ()
    """Unlabelled rasters that are learned from by the predictions of a teacher."""
    style: tuple[UnlabelledSource, ...] = ()
    """Unlabelled rasters of other places, seasons or sensors: their looks are put on the chips."""
    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    name: str = "model"
    """Name in the manifest."""
    description: str = ""
    licence: str = ""
    attribution: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("There is no [[source]].", hint="Add one with images = '...' and labels = '...'.")
        if self.peft.start >= self.train.steps:
            raise ConfigError(
                f"peft.start = {self.peft.start} leaves none of {self.train.steps} steps to train modules in.",
                hint="Lower peft.start, or use the method frozen.",
            )
        if self.target and not self.self_training.teacher:
            raise ConfigError(
                "There is a [[target]], but no self_training.teacher.",
                hint="Adapt without targets first, and name that run's folder as the teacher; or name an ONNX file.",
            )
        first = self.source[0].bands or self.input.bands or RGB_BANDS
        chosen = [("source", bands) for bands in (first, *(s.bands for s in self.source[1:]))]
        chosen += [("validation", s.bands) for s in self.validation]
        chosen += [("target", t.bands) for t in self.target] + [("style", s.bands) for s in self.style]
        require_same_count([("input", self.input.bands), *chosen])

    @property
    def legend(self) -> Legend:
        """The classes in channel order."""
        return Legend.from_names(self.classes, colors=self.colors)
