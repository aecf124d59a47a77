"""Content blocks as chat's content parts: text, images, documents, search results.

A block that no Qwen model reads (a PDF, a block of a newer API) becomes a note in its place: clients keep it
in the history, and an error would end the session. A file id is rejected: there is no file store, and a
question without its image is a different question. `cache_control` stays on its part: DashScope takes the
same marker, without a TTL.

Anthropic's API reference, `ContentBlockParam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

MARKER: JSON = {"type": "ephemeral"}


class BlockReader:
    """A reader of one request's blocks that collects the types it dropped."""

    def __init__(self) -> None:
        self.ignored: dict[str, None] = {}
        """Names for `x-qproxy-ignored-params`, in order of appearance."""
        self.added_tools: list[JSON] = []
        """Tools that are defined within messages."""

    def ignore(self, kind: str) -> None:
        """Record the type of a block that is dropped."""
        self.ignored[f"content.{kind:.60}"] = None

    def blocks(self, content: JSON, path: str) -> list[JSON]:
        """Return the blocks of a content, a string as one block. Raises RequestError for anything else."""
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list):
            validation.wrong_type(path, "a string or an array of content blocks", content)
        for number, block in enumerate(content):
            kind = validation.object_(block, f"{path}[{number}]").get("type")
            if kind is None:
                validation.missing(f"{path}[{number}].type")
            validation.string(kind, f"{path}[{number}].type")
        return content

    def parts(self, blocks: Sequence[tuple[JSON, str]]) -> list[JSON]:
        """Return blocks, each with its path, as content parts without the empty texts, which servers
        reject."""
        parts = []
        for block, path in blocks:
            part = self.part(block, path)
            if part.get("text") != "":
                parts.append({**part, "cache_control": MARKER} if block.get("cache_control") else part)
        return parts

    def part(self, block: JSON, path: str) -> dict[str, JSON]:
        """Return one block as a content part."""
        if block["type"] == "text":
            return text_part(text_of(block, path))
        if block["type"] == "image":
            return image_part(block, path)
        reader = _TEXTS.get(block["type"])
        if reader is None:
            return text_part(self.note(block["type"], f"A block of the type {block['type']!r:.60}"))
        return text_part(reader(self, block, path))

    def note(self, kind: str, what: str) -> str:
        """Return a note for the model that a block was left out, and record its type for the client."""
        self.ignore(kind)
        return f"[{what} was left out here: this model cannot read it.]"

    def document(self, block: JSON, path: str) -> str:
        """Return a document as text in `<document>`, or a note."""
        source = validation.object_(block.get("source"), f"{path}.source")
        kind, title = source.get("type"), _attribute("title", block.get("title"))
        if kind == "text":
            text = validation.string(source.get("data"), f"{path}.source.data")
        elif kind == "content":
            blocks = self.blocks(source.get("content"), f"{path}.source.content")
            text = self.joined(blocks, f"{path}.source.content")
        else:
            return self.note("document", f"A document{title} ({source.get('media_type') or kind!s:.60})")
        return f"<document{title}{_attribute('context', block.get('context'))}>\n{text}\n</document>"

    def search_result(self, block: JSON, path: str) -> str:
        """Return the title, source and texts of a search result."""
        blocks = self.blocks(block.get("content") or [], f"{path}.content")
        head = [value for value in (block.get("title"), block.get("source")) if isinstance(value, str)]
        return "\n".join([*head, self.joined(blocks, f"{path}.content")])

    def tool_reference(self, block: JSON, path: str) -> str:
        """Return what a tool search found, in words."""
        name = validation.string(block.get("tool_name"), f"{path}.tool_name")
        return f"The tool {name} is available now."

    def tool_addition(self, block: JSON, path: str) -> str:
        """Return the news of a tool that is offered from here on; a definition joins the request's tools."""
        tool = validation.object_(block.get("tool"), f"{path}.tool")
        definition = tool.get("definition")
        if definition is not None:
            self.added_tools.append(validation.object_(definition, f"{path}.tool.definition"))
            tool, path = definition, f"{path}.tool.definition"
        return f"The tool {_tool_name(tool, f'{path}.tool')} is available now."

    def tool_removal(self, block: JSON, path: str) -> str:
        """Return the news of a tool that is withdrawn; it stays declared, so that the prompt keeps its
        beginning."""
        tool = validation.object_(block.get("tool"), f"{path}.tool")
        return f"The tool {_tool_name(tool, f'{path}.tool')} is not available anymore."

    def joined(self, blocks: Sequence[JSON], path: str) -> str:
        """Join the texts of blocks; an image among them becomes a note."""
        texts = [self.text(block, f"{path}[{number}]") for number, block in enumerate(blocks)]
        return "\n\n".join(text for text in texts if text)

    def text(self, block: JSON, path: str) -> str:
        """Return one block as text; an image becomes a note."""
        part = self.part(block, path)
        return str(part["text"]) if "text" in part else self.note("image", "An image")


_TEXTS: dict[str, Callable[[BlockReader, JSON, str], str]] = {
    "document": BlockReader.document,
    "search_result": BlockReader.search_result,
    "tool_reference": BlockReader.tool_reference,
    "tool_addition": BlockReader.tool_addition,
    "tool_removal": BlockReader.tool_removal,
}


def _tool_name(tool: dict[str, JSON], path: str) -> str:
    """Return the name of a tool, or of the MCP server whose tools are meant."""
    return validation.string(tool.get("name") or tool.get("server_name"), f"{path}.name")


def text_part(text: str) -> dict[str, JSON]:
    return {"type": "text", "text": text}


def text_of(block: JSON, path: str) -> str:
    """Return the text of a text block."""
    if block.get("text") is None:
        validation.missing(f"{path}.text")
    return validation.string(block["text"], f"{path}.text")


def image_part(block: JSON, path: str) -> dict[str, JSON]:
    """Return an image as chat's `image_url`: a data URI or its URL."""
    source = validation.object_(block.get("source"), f"{path}.source")
    kind = validation.string(source.get("type"), f"{path}.source.type")
    if kind == "base64":
        media_type = validation.string(source.get("media_type"), f"{path}.source.media_type")
        url = f"data:{media_type};base64,{validation.string(source.get('data'), f'{path}.source.data')}"
    elif kind == "url":
        url = validation.string(source.get("url"), f"{path}.source.url")
    else:
        message = f"An image source of type {kind!r:.60} is not supported: send base64 data or a URL."
        raise RequestError(message, param=f"{path}.source.type", code="unsupported_value")
    return {"type": "image_url", "image_url": {"url": url}}


def _attribute(name: str, value: JSON) -> str:
    return f' {name}="{value.replace(chr(34), chr(39))}"' if isinstance(value, str) and value else ""
