"""What each rank needs, by how many there are"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("memory", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "memory")
