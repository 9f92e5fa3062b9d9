"""The words of prompts, and the index that finds jobs by them"""

import sqlalchemy as sa
from alembic import op

from jobs.db.prompt_search import stored_words

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A job that an older version submits during an upgrade has no words: the database splits its prompt. (Not for
# every job: FTS5 writes after each row of a trigger, which makes submitting half as slow again.)
_SQLITE = (
    "create virtual table job_words using fts5"
    " (words, job unindexed, tokenize = 'ascii', detail = 'none', columnsize = 0)",
    "insert into job_words (words, job) select words, id from jobs order by created",
    # A migration that copies the table of jobs has to create this again.
    "create trigger job_words_kept after insert on jobs when new.words is null begin"
    " insert into job_words (words, job) values (lower(json_extract(new.spec, '$.prompt')), new.id); end",
)
_POSTGRESQL = (
    "create index ix_jobs_words on jobs using gin ((coalesce("
    "array_to_tsvector(string_to_array(words, ' ')), to_tsvector('simple', spec ->> 'prompt'))))",
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("words", sa.Text(), nullable=True))
    connection = op.get_bind()
    jobs = sa.table("jobs", sa.column("id"), sa.column("words"), sa.column("spec", sa.JSON))
    prompts = connection.execute(sa.select(jobs.c.id, jobs.c.spec["prompt"].as_string())).all()
    if prompts:
        filled = jobs.update().where(jobs.c.id == sa.bindparam("job")).values(words=sa.bindparam("kept"))
        connection.execute(filled, [{"job": job, "kept": stored_words(prompt)} for job, prompt in prompts])
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("drop trigger job_words_kept")
        op.execute("drop table job_words")
    else:
        op.execute("drop index ix_jobs_words")
    op.drop_column("jobs", "words")
