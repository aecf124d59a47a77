"""The version, alone in its file so that every room can say it."""

VERSION = "0.1.0"
