"""How a column of a result set is declared: name, type, unit and meaning, all of which end up in the file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Field:
    """One column. `unit` is empty for names, flags and identifiers."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str

    def arrow(self) -> pa.Field:
        """The pyarrow field with unit and meaning in its metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit, "meaning": self.meaning})


@dataclass(frozen=True)
class Group:
    """Columns that belong together, under one heading of the documentation."""

    title: str
    fields: tuple[Field, ...]


def text(name: str, meaning: str) -> Field:
    """A text column."""
    return Field(name, pa.string(), "", meaning)


def texts(name: str, meaning: str) -> Field:
    """A list of texts."""
    return Field(name, pa.list_(pa.string()), "", meaning)


def flag(name: str, meaning: str) -> Field:
    """True, false or unknown."""
    return Field(name, pa.bool_(), "", meaning)


def count(name: str, meaning: str, unit: str = "1") -> Field:
    """A whole number."""
    return Field(name, pa.int64(), unit, meaning)


def size(name: str, meaning: str) -> Field:
    """Bytes."""
    return Field(name, pa.int64(), "B", meaning)


def number(name: str, unit: str, meaning: str) -> Field:
    """A real number with its unit."""
    return Field(name, pa.float64(), unit, meaning)


def seconds(name: str, meaning: str) -> Field:
    """A duration."""
    return number(name, "s", meaning)
