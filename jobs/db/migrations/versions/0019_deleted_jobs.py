"""Jobs that were deleted: what receipts need of them, and their files until they are gone"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deleted_jobs",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.Column("model_seconds", sa.Double(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("batches", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.JSON(), nullable=False),
        sa.Column("deleted", sa.Double(), nullable=False),
        sa.Column("deletion", sa.String(160), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("files_gone", sa.Double(), nullable=True),
    )
    op.create_index("ix_deleted_jobs_deleted", "deleted_jobs", ["deleted"])
    op.create_index("ix_deleted_jobs_deletion", "deleted_jobs", ["deletion"])
    op.create_index("ix_deleted_jobs_files_gone", "deleted_jobs", ["files_gone"])


def downgrade() -> None:
    op.drop_table("deleted_jobs")
