"""Comments and tags of nodes, and the tags that jobs ask for"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0018"
branch_labels = None
depends_on = None

_BY_JOB = ["state", "queue", "owner", "priority"]
_OLD = "ix_jobs_state_jobs_queue_jobs_owner_jobs_priority_jobs_"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("comment", sa.Text(), nullable=False, server_default=""))
    for name in ("tags", "own_tags"):
        op.add_column("nodes", sa.Column(name, sa.String(512), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("require_tag", sa.String(512), nullable=False, server_default=""))
    for name, last in (("ix_jobs_oldest_queued", "created"), ("ix_jobs_longest_queued", "work")):
        op.create_index(name, "jobs", [*_BY_JOB, "require_tag", last])
        op.drop_index(_OLD + last, "jobs")


def downgrade() -> None:
    for name, last in (("ix_jobs_oldest_queued", "created"), ("ix_jobs_longest_queued", "work")):
        op.create_index(_OLD + last, "jobs", [*_BY_JOB, last])
        op.drop_index(name, "jobs")
    op.drop_column("jobs", "require_tag")
    for name in ("own_tags", "tags", "comment"):
        op.drop_column("nodes", name)
