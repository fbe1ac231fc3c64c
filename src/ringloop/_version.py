"""The version, which meson.build has, too; a test compares them."""

__version__ = "0.1.0"
