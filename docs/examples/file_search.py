"""An MCP server that searches the files of one folder.  Python's standard library is all it needs.

    python3 file_search.py FOLDER

It has two tools: `search` finds lines that hold some words, `read` shows a part of a file. It does not keep
anybody out of anything by itself; that is what the fence is for, in which it sees the folder and nothing
else.
"""

import json
import os
import sys

MOST_LINES = 40
LONGEST = 300
TOOLS = [
    {
        "name": "search",
        "description": "Find the lines of the files that hold all the given words, whatever their case.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "words": {"type": "string", "description": "One or more words, with spaces between."}
            },
            "required": ["words"],
            "additionalProperties": False,
        },
    },
    {
        "name": "read",
        "description": "Show some lines of a file that a search has named.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "file": {"type": "string"},
                "first": {"type": "integer", "minimum": 1, "description": "The first line (default 1)."},
                "lines": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 200,
                    "description": "How many (default 50).",
                },
            },
            "required": ["file"],
            "additionalProperties": False,
        },
    },
]


def files(folder):
    """The text files below a folder, by their names from there."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield os.path.relpath(os.path.join(place, name), folder)


def search(folder, words):
    """The lines that hold all the words."""
    wanted, found = words.lower().split(), []
    for name in files(folder):
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if all(word in line.lower() for word in wanted):
                        found.append(f"{name}:{number}: {line.strip()[:LONGEST]}")
                        if len(found) == MOST_LINES:
                            return "\n".join([*found, "(there are more)"])
        except (OSError, UnicodeDecodeError):
            continue  # not a text, or not for us
    return "\n".join(found) or "No line holds all of these words."


def read(folder, file, first=1, lines=50):
    """Some lines of a file."""
    with open(os.path.join(folder, file), encoding="utf-8") as text:
        return "".join(line for number, line in enumerate(text, 1) if first <= number < first + lines)


def answer(folder, method, params):
    """The result of a request; KeyError for a method that there is not."""
    if method == "initialize":
        version = params.get("protocolVersion", "2025-06-18")
        about = {"name": "file-search", "version": "1"}
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "ping":
        return {}
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "tools/call":
        try:
            text = {"search": search, "read": read}[params["name"]](folder, **params.get("arguments", {}))
            return {"content": [{"type": "text", "text": text}], "isError": False}
        except (OSError, UnicodeDecodeError, TypeError, KeyError) as error:
            return {
                "content": [{"type": "text", "text": f"{type(error).__name__}: {error}"}],
                "isError": True,
            }
    raise KeyError(method)


def main(folder):
    """Answer one line of JSON-RPC with one line, until there are no more."""
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue  # a notification
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            reply["result"] = answer(folder, message["method"], message.get("params") or {})
        except KeyError:
            reply["error"] = {"code": -32601, "message": f"there is no {message['method']}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(os.path.realpath(sys.argv[1]))
