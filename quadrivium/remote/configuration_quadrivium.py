"""The model's shape as transformers keeps it."""

from typing import Any

from transformers import PretrainedConfig


class QuadriviumConfig(PretrainedConfig):
    """``shape``: the fields of ``ModelConfig``."""

    model_type = "quadrivium"

    def __init__(self, shape: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.shape = shape or {}
        super().__init__(**kwargs)
