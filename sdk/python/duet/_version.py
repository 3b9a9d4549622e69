"""The version of Duet that this package was written for."""

__version__ = "0.1.0"
