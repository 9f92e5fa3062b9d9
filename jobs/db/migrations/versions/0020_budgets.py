"""Budgets of owners, and what they have used of them"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("price", sa.Double(), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ends", sa.Double(), nullable=False),
        sa.Column("counted", sa.Double(), nullable=False),
        sa.Column("slot_seconds", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("budgets")
