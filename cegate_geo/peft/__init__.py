"""Small trainable modules for any timm ViT, and the gate that chooses among them. Tensors in, tensors out."""

from cegate_geo.peft.attach import Gradients, Inactive, Toolbox, ToolboxConfig, attach, keys_of
from cegate_geo.peft.baselines import METHODS, Method, build_gate, build_toolbox, find_method
from cegate_geo.peft.fisher import Normalise, fisher_scores, gradient_norms, normalise_scores
from cegate_geo.peft.fuse import fuse
from cegate_geo.peft.gate import Gate, GateConfig, Policy
from cegate_geo.peft.modules import FrequencyModule, SemanticModule, SiteModule, SpatialModule
from cegate_geo.peft.prune import merge, prune
from cegate_geo.peft.rivals import PromptModule, ReinModule
from cegate_geo.peft.selection import Quota, Selection, blend, select, select_by_type
from cegate_geo.peft.sites import ALL_KINDS, KINDS, Kind, ModuleKey

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "METHODS",
    "FrequencyModule",
    "Gate",
    "GateConfig",
    "Gradients",
    "Inactive",
    "Kind",
    "Method",
    "ModuleKey",
    "Normalise",
    "Policy",
    "PromptModule",
    "Quota",
    "ReinModule",
    "Selection",
    "SemanticModule",
    "SiteModule",
    "SpatialModule",
    "Toolbox",
    "ToolboxConfig",
    "attach",
    "blend",
    "build_gate",
    "build_toolbox",
    "find_method",
    "fisher_scores",
    "fuse",
    "gradient_norms",
    "keys_of",
    "merge",
    "normalise_scores",
    "prune",
    "select",
    "select_by_type",
]
