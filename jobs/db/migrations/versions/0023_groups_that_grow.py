"""Slots that a running group is given and gives back"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("members", sa.Column("elastic", sa.Boolean(), nullable=True))
    op.add_column("members", sa.Column("wanted", sa.JSON(), nullable=True))
    op.add_column("members", sa.Column("slots_before", sa.JSON(), nullable=True))


def downgrade() -> None:
    for name in ("slots_before", "wanted", "elastic"):
        op.drop_column("members", name)
