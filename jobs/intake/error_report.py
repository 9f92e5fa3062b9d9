"""Bad rows in a few lines: rows with the same problem together, so that ten thousand fit one screen."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.formatting import thousands
from jobs.intake.batch_reader import BadRow

SHOWN_KINDS = 15
_SHOWN_LINES = 3
_LONGEST = 200


def grouped_errors(bad: Sequence[BadRow]) -> list[dict[str, object]]:
    """Kinds of problems, the most frequent first: `count`, `lines` (the first few), `field`, `problem`."""
    kinds: dict[str, list[BadRow]] = {}
    for row in bad:
        kinds.setdefault(row.kind, []).append(row)
    return [
        {
            "count": len(rows),
            "lines": [row.line for row in rows[:_SHOWN_LINES]],
            "field": rows[0].field,
            "problem": rows[0].problem,
        }
        for rows in sorted(kinds.values(), key=lambda rows: (-len(rows), rows[0].line))
    ]


def error_lines(bad: Sequence[BadRow]) -> list[str]:
    """One line for each kind of problem, up to `SHOWN_KINDS`."""
    groups = grouped_errors(bad)
    lines = [_line(group) for group in groups[:SHOWN_KINDS]]
    rest = groups[SHOWN_KINDS:]
    if rest:
        rows = sum(int(str(group["count"])) for group in rest)
        lines.append(f"and {thousands(rows)} more rows with {len(rest)} other problems")
    return lines


def _line(group: dict[str, object]) -> str:
    lines, count = list(group["lines"]), int(str(group["count"]))  # type: ignore[call-overload]
    more = f" and {thousands(count - len(lines))} more" if count > len(lines) else ""
    text = f"line{'s' if count > 1 else ''} {', '.join(map(str, lines))}{more}: {group['problem']}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
