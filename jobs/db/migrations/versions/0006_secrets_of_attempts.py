"""The secret by which the nodes of an attempt know each other"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("secret", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "secret")
