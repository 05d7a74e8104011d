"""Lines of text for a terminal, or the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


class Page:
    """Collects lines; a table is aligned in text and piped in Markdown."""

    def __init__(self, markdown: bool, width: int) -> None:
        self.markdown, self.width, self.lines = markdown, width, []

    def title(self, text: str) -> None:
        self.lines += ["", f"## {text}" if self.markdown else text, *([""] if self.markdown else [])]

    def text(self, text: str) -> None:
        """One sentence, wrapped on a terminal."""
        import textwrap

        self.lines += (
            [f"- {escape(text)}"]
            if self.markdown
            else textwrap.wrap(text, self.width, subsequent_indent="  ", break_on_hyphens=False)
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """First column left, others right aligned. Where that is too wide, the first column gets a line of its own."""
        if self.markdown:
            self.lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
            self.lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
            self.lines.append("")
            return
        widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
        apart = sum(widths) + 2 * (len(widths) - 1) > self.width - 2
        for row in [head, *rows]:
            figures = "  ".join(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
            if apart:
                self.lines += [f"  {row[0]}"[: self.width], f"    {figures}"]
            else:
                self.lines.append(f"  {row[0]:<{widths[0]}}  {figures}".rstrip())


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")
