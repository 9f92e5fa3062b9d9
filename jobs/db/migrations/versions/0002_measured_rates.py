"""Measured rates, the work that each job means, and what has been reported"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rates",
        sa.Column("model", sa.String(length=512), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("work", sa.Double(), nullable=False),
        sa.Column("slot_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("model", "device", name=op.f("pk_rates")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("work", sa.Double(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_jobs_state_jobs_queue_jobs_owner_jobs_priority_jobs_created"),
            ["state", "queue", "owner", "priority", "created"],
            unique=False,
        )
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.add_column(sa.Column("submitted", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("reported", sa.Double(), nullable=True))
    with op.batch_alter_table("queues", schema=None) as batch_op:
        batch_op.add_column(sa.Column("opened", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("queues", schema=None) as batch_op:
        batch_op.drop_column("opened")
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.drop_column("reported")
        batch_op.drop_column("submitted")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_state_jobs_queue_jobs_owner_jobs_priority_jobs_created"))
        batch_op.drop_column("work")
    op.drop_table("rates")
