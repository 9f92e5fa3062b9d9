"""Which column of a file is what: a field of the spec, part of the template, custom id, tags, or nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jobs.intake.options import CUSTOM_ID, REQUIRE_TAG, IntakeOptions
from jobs.intake.template import fold
from render.errors import BadInput
from render.spec import Spec, SpecField

_SHOWN = 8
_UNIT = re.compile(r"[(\[][^)\]]*[)\]]")
"""As in `Width (px)`."""
_SLIP = 2
"""Letters by which the length of a mistyped name differs at most; German `Lager` is no `enlarger`."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What one column is used for; nothing if all are empty."""

    field: SpecField | None = None
    template: tuple[str, ...] = ()
    """The names under which the template has it."""
    custom_id: bool = False
    require_tag: bool = False
    problem: str = ""
    """Why a row with a value in this column is refused."""

    @property
    def used(self) -> bool:
        return bool(self.field or self.template or self.custom_id or self.require_tag)


class Columns:
    """Finds out what columns are for, by their names; remembers those that are of no use."""

    def __init__(self, options: IntakeOptions) -> None:
        self._options = options
        self._fields = {field.name: field for field in Spec.inputs()}
        self._wanted = options.template.columns if options.template else frozenset[str]()
        self._id = fold(options.id_column) if options.id_column else CUSTOM_ID
        self._uses: dict[str, Use] = {}

    def use_of(self, name: str) -> Use:
        use = self._uses.get(name)
        if use is None:
            use = self._uses[name] = self._find(name)
        return use

    def check(self, names: tuple[str, ...], has_prompt: bool) -> None:
        """Check the header of a file; `has_prompt` if the prompt is given otherwise. Raises `BadInput`."""
        folded = [fold(name) for name in names]
        self._check_named(names, folded)
        owner: dict[str, str] = {}
        for name in names:
            use = self.use_of(name)
            targets = [use.field.name if use.field else "", CUSTOM_ID if use.custom_id else "", *use.template]
            targets.append(REQUIRE_TAG if use.require_tag else "")
            for target in filter(None, dict.fromkeys(targets)):
                if target in owner:
                    raise BadInput("batch", None, _twice(owner[target], name))
                owner[target] = name
        for column in sorted(self._wanted - set(owner)):
            raise BadInput(
                "template",
                self._options.template and self._options.template.text,
                f"names {column}, which is no column of the file ({_listed(names)}); "
                "correct it, or use --map COLUMN=" + column,
            )
        if not (has_prompt or self._wanted or "prompt" in owner):
            fix = f"has no column prompt ({_listed(names)}); give a template, or --map COLUMN=prompt"
            raise BadInput("batch", None, fix)

    def ignored_note(self) -> str:
        """One sentence about the columns that were passed over; empty if there are none."""
        unused = [
            name
            for name, use in self._uses.items()
            if not (use.used or use.problem or fold(name) in self._options.ignored)
        ]
        if not unused:
            return ""
        near = [
            f"did you mean {match} by {name}?"
            for name in unused
            for match in _near(fold(_UNIT.sub("", name)), self._known())
        ]
        shown = [name or "one without a name" for name in unused]
        count = f"{len(unused)} columns" if len(unused) > 1 else "1 column"
        note = f"ignored {count} that neither the template nor the spec uses: {_listed(shown)}"
        return "; ".join([note, *near[:3]])

    def _check_named(self, names: tuple[str, ...], folded: list[str]) -> None:
        """Columns that the options name must be there."""
        given = [("map", f"{column}={target}", column) for column, target in self._options.column_map.items()]
        if self._options.id_column:
            given.append(("id-column", self._options.id_column, self._id))
        for option, text, column in given:
            if column not in folded:
                raise BadInput(option, text, f"names no column of the file; its columns are {_listed(names)}")

    def _find(self, name: str) -> Use:
        own = fold(name)
        target = self._options.column_map.get(own)
        if target is not None and target not in self._known():
            known = "the template or of the spec" if self._wanted else "the spec"
            raise BadInput("map", f"{own}={target}", f"names no field of {known}; correct {target}")
        goal = target or own
        use = Use(
            field=None if own in self._options.ignored else self._fields.get(goal),
            template=tuple(sorted({own, goal} & self._wanted)),
            custom_id=own == self._id or (goal == CUSTOM_ID and self._id == CUSTOM_ID),
            require_tag=goal == REQUIRE_TAG and own not in self._options.ignored,
        )
        if use.used or self._options.template or own in self._options.ignored or goal == CUSTOM_ID:
            return use
        return Use(problem=self._unknown(name, own))

    def _unknown(self, name: str, own: str) -> str:
        if not name:
            return "has a value in a column without a name; name it in the header, or delete it"
        near = _near(own, self._known())
        hint = f"did you mean {near[0]}?" if near else "it is no field of the spec."
        return f"is unknown; {hint} Pass over a column with --ignore, or give a template"

    def _known(self) -> list[str]:
        return [*self._fields, *self._wanted, CUSTOM_ID, REQUIRE_TAG]


def _near(name: str, known: Iterable[str]) -> list[str]:
    """The name that is meant, if it may be a slip of the pen: of about the same length."""
    alike = [each for each in known if abs(len(each) - len(name)) <= _SLIP]
    return difflib.get_close_matches(name[:80], alike, n=1, cutoff=0.75)


def _twice(first: str, second: str) -> str:
    if first == second:
        return f"has two columns named {first}; rename one"
    return f"has two columns for one thing, {first} and {second}; rename or --ignore one"


def _listed(names: Iterable[str]) -> str:
    found = [name[:40] for name in names if name]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
