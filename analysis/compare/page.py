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

        text = visible(text)
        self.lines += (
            [f"- {escape(text)}"]
            if self.markdown
            else textwrap.wrap(text, self.width, subsequent_indent="  ", break_on_hyphens=False)
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """First column left, others right aligned. Where that is too wide, the first column gets a line of its own."""
        rows = [[visible(cell) for cell in row] for row in rows]
        if self.markdown:
            self.lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
            self.lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
            self.lines.append("")
            return
        widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
        apart = sum(widths) + 2 * (len(widths) - 1) > self.width - 2
        lines: list[list[int]] = [[]]
        for at in range(1, len(head)):
            # Columns that are too wide even so go on in a further line.
            if apart and lines[-1] and sum(widths[one] + 2 for one in [*lines[-1], at]) + 2 > self.width:
                lines.append([])
            lines[-1].append(at)
        for row in [head, *rows]:
            figures = ["  ".join(row[at].rjust(widths[at]) for at in line) for line in lines]
            if apart:
                self.lines += [f"  {row[0]}"[: self.width], *(f"    {line}"[: self.width].rstrip() for line in figures)]
            else:
                self.lines.append(f"  {row[0]:<{widths[0]}}  {figures[0]}".rstrip())


def visible(text: str) -> str:
    """Text without the control characters that a log or a configuration may bring to a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in text)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")
