"""The health of nodes and the identity of their agents; attempts that a warm group goes on with"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("agent", sa.String(64), nullable=True))
    op.add_column("nodes", sa.Column("problems", sa.JSON(), nullable=True))
    op.add_column("attempts", sa.Column("follows", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "follows")
    op.drop_column("nodes", "problems")
    op.drop_column("nodes", "agent")
