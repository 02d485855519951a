"""Conversion of dataclasses of tensors to plain dicts for a file, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def pack(record: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of tensors and numbers; callables are left out."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: pack(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
        if not callable(value)
    }


def unpack(template: Any, saved: Mapping[str, Any], device: torch.device) -> Any:
    """The dataclass `template` with the values of `pack`."""
    values = {
        name: unpack(getattr(template, name), value, device)
        if is_dataclass(getattr(template, name)) and isinstance(value, Mapping)
        else to_device(value, device)
        for name, value in saved.items()
    }
    return replace(template, **values)


def to_device(value: Any, device: torch.device) -> Any:
    """Nested dicts and lists with their tensors moved to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value
