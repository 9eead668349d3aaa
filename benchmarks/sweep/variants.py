"""The variants of a sweep: what each changes in a preset. Edit :data:`VARIANTS` to sweep something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.contract.errors import UsageError
from train.config import PRESETS, ModelConfig, Preset

BUDGET = ("steps", "batch", "crop")
"""The options of the command that a variant may have its own of."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A preset and the fields of :class:`train.config.ModelConfig` that differ from it.

    Raises:
        ValueError: the name cannot be a folder's, or the preset is not known, or model or budget cannot be.
        TypeError: the model has no such field.
    """

    name: str
    base: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)
    """Those of :data:`BUDGET` that are not the command's: what a cheap model makes of an expensive one's time."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"a variant's name takes letters, digits, _ and -, received {self.name!r}")
        if self.base not in PRESETS:
            raise ValueError(f"variant {self.name}: base must be one of {', '.join(PRESETS)}, received {self.base!r}")
        if not set(self.budget) <= set(BUDGET) or any(value < 1 for value in self.budget.values()):
            raise ValueError(
                f"variant {self.name}: budget takes {', '.join(BUDGET)}, each at least 1, received {dict(self.budget)}"
            )
        if self.name in PRESETS and (self.changes or self.budget or self.name != self.base):
            raise ValueError(f"variant {self.name} has the name of a preset: choose another, or change nothing in it")
        replace(PRESETS[self.base].model, **self.changes)

    @property
    def preset(self) -> Preset:
        """The model, and the base's way of training it."""
        return replace(PRESETS[self.base], model=self.model)

    @property
    def model(self) -> ModelConfig:
        """The model's shape."""
        return replace(PRESETS[self.base].model, **self.changes)

    @property
    def token_stride_px(self) -> int:
        """Image pixels per side of a token of the encoders."""
        return self.model.stem_stride << (len(self.model.encoder_widths) - 1)

    @property
    def token_depth(self) -> int:
        """Transformers in a row at each bottleneck; 0 where encoders and fusion have none."""
        return self.model.token_depth if self.model.hyfex_attention or self.model.hyfma_attention else 0

    def described(self) -> str:
        """The changes, for a table: ``encoder_widths 16-32-64, token_depth 2``."""
        shown = (f"{name} {'-'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in self.changes.items())
        return ", ".join(shown)


def _of(base: str, changes_by_name: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, Variant]:
    return {
        name: Variant(name=name, base=base, changes={**common, **changes}) for name, changes in changes_by_name.items()
    }


VARIANTS: dict[str, Variant] = {
    **_of("paper", {"paper": {}}),
    **_of("nano", {"nano": {}}),
    **_of("edge", {"edge": {}}),
    # The shape is varied without the last smoothing, which costs the same in every shape.
    **_of(
        "edge",
        {
            "blocks": {},
            # Width.
            "narrow": {"encoder_widths": (32, 32, 64, 96), "generator_widths": (32, 32, 64, 96)},
            "wide": {"encoder_widths": (64, 96, 128, 192), "generator_widths": (64, 96, 128, 192)},
            # Stem: one scale more, tokens where they were.
            "stem-2": {
                "stem_stride": 2,
                "encoder_widths": (32, 32, 64, 96, 128),
                "encoder_refinements": (0, 0, 1, 1, 0),
                "generator_widths": (32, 32, 64, 96, 128),
                "generator_refinements": (0, 0, 1, 1, 0),
            },
            # Token stride: one scale less, or one more.
            "tokens-16": {
                "encoder_widths": (32, 64, 128),
                "encoder_refinements": (0, 1, 1),
                "generator_widths": (32, 64, 128),
                "generator_refinements": (0, 1, 1),
            },
            "tokens-64": {
                "encoder_widths": (32, 64, 96, 128, 160),
                "encoder_refinements": (0, 1, 1, 1, 0),
                "generator_widths": (32, 64, 96, 128, 160),
                "generator_refinements": (0, 1, 1, 1, 0),
            },
            # Depth.
            "shallow": {"encoder_refinements": (0, 0, 0, 0), "generator_refinements": (0, 0, 0, 0)},
            "deep": {"encoder_refinements": (1, 2, 2, 1), "generator_refinements": (1, 2, 2, 1)},
            "two-transformers": {"token_depth": 2},
            "no-transformer": {"hyfex_attention": False, "hyfma_attention": False},
        },
        smoothing_kernel=1,
    ),
    # What takes no longer than 300 steps of the reference with 4 crops of 128 px.
    "edge-same-time": Variant(name="edge-same-time", base="edge", budget={"steps": 450, "batch": 8, "crop": 192}),
}
"""The first one is the reference of the ratios."""


def chosen(text: str) -> list[Variant]:
    """The variants of a comma-separated list.

    Raises:
        UsageError: the list is empty or names something unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names or len(set(names)) < len(names):
        raise UsageError(f"--variants takes each of {', '.join(VARIANTS)} once; received {text!r}")
    return [VARIANTS[name] for name in names]
