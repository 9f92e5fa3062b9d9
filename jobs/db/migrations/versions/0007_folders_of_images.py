"""The folder of an image, which depends on the numerics that rendered it; the numerics of a node"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("folder", sa.String(128), nullable=True))
    op.add_column("attempts", sa.Column("folder", sa.String(128), nullable=True))
    op.add_column("nodes", sa.Column("numerics", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "numerics")
    op.drop_column("attempts", "folder")
    op.drop_column("jobs", "folder")
