"""Track Markdown's code blocks: a call inside one is an example.

CommonMark 4.5: a block's opener is up to three spaces and three or more backticks or tildes at the start of a
line (the rest of a line of backticks has no backtick); its closer is of the same character, at least as long,
and alone on its line. Inline code and indentation open nothing here.
"""

from __future__ import annotations


class CodeFenceTracker:
    """A tracker that is fed the text in order, in any pieces."""

    __slots__ = ("_alone", "_char", "_indent", "_phase", "_run", "_spoiled", "is_open", "last_char")

    def __init__(self) -> None:
        self.is_open: tuple[str, int] | None = None
        """Character and length of the open block's opener."""
        self.last_char = "\n"
        """The last character of the text; at its start that of a line end."""
        self._line()

    def _line(self) -> None:
        self._phase = "indent"
        self._indent = 0
        self._char = ""
        self._run = 0
        self._alone = True
        self._spoiled = False

    @property
    def is_inside(self) -> bool:
        """Return whether the next text is inside a code block (or in the line that opens one)."""
        return self.is_open is not None or (self._phase != "plain" and self._run >= 3)

    @property
    def at_line_start(self) -> bool:
        return self.last_char == "\n"

    def feed(self, text: str) -> None:
        if not text:
            return
        self.last_char = text[-1]
        if self._phase == "plain" and "\n" not in text:
            return
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if number:
                self._end_line()
            for char in line:
                if self._phase == "plain":
                    break
                self._step(char)

    def _step(self, char: str) -> None:
        if self._phase == "indent":
            if char == " " and self._indent < 3:
                self._indent += 1
            elif char in "`~":
                self._phase, self._char, self._run = "run", char, 1
            else:
                self._phase = "plain"
        elif self._phase == "run" and char == self._char:
            self._run += 1
        elif self._run < 3:
            self._phase = "plain"
        else:
            self._phase = "info"
            self._alone = self._alone and char in " \t\r"
            self._spoiled = self._spoiled or (char == "`" and self._char == "`")

    def _end_line(self) -> None:
        if self._run >= 3 and self._phase != "plain":
            if self.is_open is None:
                if not self._spoiled:
                    self.is_open = self._char, self._run
            elif self._char == self.is_open[0] and self._run >= self.is_open[1] and self._alone:
                self.is_open = None
        self._line()


def without_fence(text: str) -> str:
    """Return a text without the whitespace, and without the Markdown code block, around it."""
    text = text.strip()
    if not text.startswith("```"):
        return text
    body = text.partition("\n")[2].rstrip()
    return body.rstrip("`").strip() if body.endswith("```") else body
