"""Sound, pictures and files."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.config.setting import setting


@dataclass(frozen=True)
class MediaSettings:
    """Sound, pictures and files."""

    speech_voices: dict[str, str] = setting(
        {},
        "voice names that clients may use for speech, and the models' names for them; MODEL/NAME is for "
        "one model",
    )
    ffmpeg: str | None = setting(
        None,
        "program that makes the formats and speeds of sound which a model lacks; default ffmpeg, if it is "
        "installed; `none` disables it",
    )
    moderation_model: str | None = setting(
        None,
        "model of moderations that name none, or one of OpenAI's: a guard, a decision model, or a chat model "
        "with log probabilities",
    )
    moderation_flags_controversial: bool = setting(
        True, "flag inputs that a guard model calls controversial; it always flags unsafe ones"
    )
    audio_translation_model: str | None = setting(
        None,
        "model that translates the transcripts of /v1/audio/translations into English; default the catalog's "
        "`translation`; `none` refuses such requests",
    )
    upload_hosts: list[str] = setting(
        ["dashscope-*.oss-*.aliyuncs.com"],
        "hosts that Model Studio may have recordings uploaded to; `*` stands for one label, an origin "
        "(http://127.0.0.1:8788) is allowed as well",
    )
    files_directory: str | None = setting(
        None, "directory of the clients' files and batches; default files in the data directory"
    )
    files_max_bytes: int = setting(
        10 * 1024**3, "maximum bytes of all stored files; further uploads are rejected"
    )
    files_max_age: float = setting(
        30 * 86400.0, "seconds after which a file without expires_after of its own is deleted"
    )
    batch_parallel: int = setting(4, "lines of batches that each worker runs at a time")
