"""When a node left an attempt whose group went on without it"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("members", sa.Column("left_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("members", "left_at")
