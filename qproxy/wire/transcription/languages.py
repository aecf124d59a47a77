"""Codes of languages (ISO 639-1, else 639-3), and the words that Whisper has for them."""

from __future__ import annotations

NAMES = {
    "ar": "arabic", "bg": "bulgarian", "cs": "czech", "da": "danish", "de": "german", "el": "greek",
    "en": "english", "es": "spanish", "fi": "finnish", "fil": "filipino", "fr": "french", "he": "hebrew",
    "hi": "hindi", "hr": "croatian", "hu": "hungarian", "id": "indonesian", "is": "icelandic",
    "it": "italian", "ja": "japanese", "ko": "korean", "ms": "malay", "nl": "dutch", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sk": "slovak", "sv": "swedish",
    "th": "thai", "tl": "tagalog", "tr": "turkish", "uk": "ukrainian", "vi": "vietnamese",
    "yue": "cantonese", "zh": "chinese",
}  # fmt: skip
# fmt: off
CHAT = frozenset((
    "ar", "cs", "da", "de", "en", "es", "fi", "fil", "fr", "hi", "id", "is", "it", "ja", "ko", "ms", "no",
    "pl", "pt", "ru", "sv", "th", "tr", "uk", "vi", "yue", "zh",
))
"""Of Qwen3-ASR's `language`."""
RECOGNITION = frozenset((
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "fi", "fr", "hi", "hr", "hu", "id", "it", "ja", "ko",
    "ms", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sv", "th", "tl", "vi", "zh",
))
"""Of `language_hints`."""
# fmt: on
_CODES = {name: code for code, name in NAMES.items()}


def code_of(language: str) -> str:
    """Return the code of a code, of a tag such as `en-US`, or of an English name."""
    language = language.strip().lower()
    return _CODES.get(language) or language.replace("_", "-").partition("-")[0]
