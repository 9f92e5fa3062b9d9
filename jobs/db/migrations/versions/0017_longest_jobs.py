"""An index that finds the longest queued jobs"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_NAME = "ix_jobs_state_jobs_queue_jobs_owner_jobs_priority_jobs_work"
_COLUMNS = ["state", "queue", "owner", "priority", "work"]


def upgrade() -> None:
    op.create_index(_NAME, "jobs", _COLUMNS)


def downgrade() -> None:
    op.drop_index(_NAME, "jobs")
