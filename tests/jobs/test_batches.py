"""Batch files: every bad row is named by its line; good ones are specs."""

from pathlib import Path

import pytest

from jobs.batches import BadRow, BatchReader, Row
from render.errors import BadInput


def read(path: Path, text: str, **options: object) -> tuple[list[Row], list[str]]:
    path.write_text(text, encoding="utf-8")
    rows = list(BatchReader(path=path, **options))  # type: ignore[arg-type]
    good = [row for row in rows if isinstance(row, Row)]
    return good, [f"{row.line}: {row.problem}" for row in rows if isinstance(row, BadRow)]


def test_a_template_writes_prompts_from_columns(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "catalog.csv",
        "\ufeffcustom_id,color,product,size,seed\nA1,red,vase,512x384,7\nA2,blue,mug,,\n",
        template="a studio photo of a {color} {product}",
        defaults={"width": 256, "height": 256, "steps": 5},
    )
    assert bad == []
    assert [(row.line, row.custom_id, row.spec.prompt) for row in good] == [
        (2, "A1", "a studio photo of a red vase"),
        (3, "A2", "a studio photo of a blue mug"),
    ]
    first, second = good[0].spec, good[1].spec
    assert (first.width, first.height, first.seed, first.steps) == (512, 384, 7, 5)
    assert (second.width, second.height, second.seed) == (256, 256, 0)


def test_all_bad_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "catalog.csv",
        "custom_id,prompt,seed,sede\na,a vase,1,\na,a mug,2,\nb,,3,\nc,a box,x,\n"
        "d,a ball,4,9\ne,short\nf,ok,6,\n",
    )
    assert [row.custom_id for row in good] == ["a", "f"]
    assert [text.split(":")[0] for text in bad] == ["3", "4", "5", "6", "7"]
    for text, part in zip(
        bad,
        (
            "line 2",
            "prompt",
            "seed: 'x'",
            "did you mean seed",
            "columns: 2 do not match the header, which has 4",
        ),
        strict=True,
    ):
        assert part in text


def test_jsonl_and_yaml(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path / "b.jsonl", '{"prompt": "a vase", "seed": 3}\n\n[1]\n{"prompt": "a mug", "seed": "4"}\n{'
    )
    assert [(row.line, row.spec.seed) for row in good] == [(1, 3), (4, 4)]
    assert [text.split(":")[0] for text in bad] == ["3", "5"]
    good, bad = read(
        tmp_path / "b.yaml",
        "defaults: {steps: 4}\nrows:\n- {prompt: a vase}\n- {prompt: a mug, steps: 9}\n- 3\n",
    )
    assert [row.spec.steps for row in good] == [4, 9]
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("b.txt", "", "unknown ending"),
        ("b.csv", "", "is empty"),
        ("b.yaml", "rows: 3", "no list of rows"),
        ("b.yaml", "jobs: []\nrows: []", "unknown in a batch"),
        ("b.yaml", "rows: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_batch_is_refused(tmp_path: Path, name: str, text: str, part: str) -> None:
    with pytest.raises(BadInput, match=part):
        read(tmp_path / name, text)


@pytest.mark.parametrize("template", ["plain", "{", "{0}", "{a.b}", "{a:>9999999999}", "{a!r}"])
def test_a_template_that_names_no_columns_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(BadInput, match="template"):
        read(tmp_path / "b.csv", "a\n1\n", template=template)


def test_a_row_that_lacks_a_word_of_the_template_is_bad(tmp_path: Path) -> None:
    _, bad = read(tmp_path / "b.csv", "color,product\nred,\n", template="a {color} {product}")
    assert "needs product" in bad[0]
