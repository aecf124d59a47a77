"""The version, in a module without imports, for every package."""

VERSION = "0.1.0"
