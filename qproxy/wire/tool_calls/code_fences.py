"""Track Markdown's code blocks: a call inside one is an example, and so is one in quotes, in a line of a
diff or in a quoted line.

CommonMark 4.5: a block's opener is up to three spaces and three or more backticks or tildes at the start of a
line (the rest of a line of backticks has no backtick); its closer is of the same character, at least as long,
and alone on its line. Inline code and indentation open nothing here.
"""

from __future__ import annotations

_BEFORE_QUOTES = " \t\n([{<=:,"
"""Characters before an opening quote, rather than a closing one."""


class CodeFenceTracker:
    """A tracker that is fed the text in order, in any pieces."""

    __slots__ = (
        "_alone", "_before", "_blanks", "_char", "_indent", "_phase", "_run", "_spoiled", "is_open",
        "last_char",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_open: tuple[str, int] | None = None
        """Character and length of the open block's opener."""
        self.last_char = "\n"
        """The last character of the text; at its start that of a line end."""
        self._before = "\n"
        """The character before it."""
        self._line()

    def _line(self) -> None:
        self._phase = "indent"
        self._indent = 0
        self._char = ""
        self._run = 0
        self._blanks = 0
        self._alone = True
        self._spoiled = False

    @property
    def is_inside(self) -> bool:
        """Return whether the next text is inside a code block (or in the line that opens one)."""
        return self.is_open is not None or (self._phase != "plain" and self._run >= 3)

    @property
    def is_quoted(self) -> bool:
        """Return whether the next text directly follows a backtick or an opening quote, or is all of a line
        that a diff or a quotation marks; one blank after `-` or `+` makes an item of a list.
        """
        if self.last_char == "`":
            return True
        if self.last_char in "\"'":
            return self._before in _BEFORE_QUOTES
        return self._phase == "mark" and (self._char == ">" or self._blanks != 1)

    @property
    def at_line_start(self) -> bool:
        return self.last_char == "\n"

    def feed(self, text: str) -> None:
        if not text:
            return
        self._before = text[-2:-1] or self.last_char
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
            elif char in "+->":
                self._phase, self._char = "mark", char
            else:
                self._phase = "plain"
        elif self._phase == "mark":
            if char in " \t":
                self._blanks += 1
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
