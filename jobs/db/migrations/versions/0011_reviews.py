"""Verdicts of reviewers, and what the quality gate has found"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("batch", sa.String(32), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("reviewer", sa.String(128), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("starred", sa.Boolean(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_reviews_batch"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_reviews_job"),
        sa.PrimaryKeyConstraint("batch", "row", "job", "reviewer", name="pk_reviews"),
    )
    op.create_index("ix_reviews_job", "reviews", ["job"])
    op.create_table(
        "image_checks",
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("flaws", sa.JSON(), nullable=False),
        sa.Column("flawed", sa.Boolean(), nullable=False),
        sa.Column("checked", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_image_checks_job"),
        sa.PrimaryKeyConstraint("job", name="pk_image_checks"),
    )


def downgrade() -> None:
    op.drop_table("image_checks")
    op.drop_index("ix_reviews_job", "reviews")
    op.drop_table("reviews")
