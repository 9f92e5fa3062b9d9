"""Maintenance of nodes, and restarts of their agents"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "maintenance",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("node", sa.String(128), nullable=False),
        sa.Column("time_window", sa.String(128), nullable=True),
        sa.Column("begins", sa.Double(), nullable=True),
        sa.Column("ends", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_maintenance"),
    )
    op.create_index("ix_maintenance_node", "maintenance", ["node"])
    op.add_column("nodes", sa.Column("maintained_until", sa.Double(), nullable=True))
    op.add_column("nodes", sa.Column("restart_asked", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "restart_asked")
    op.drop_column("nodes", "maintained_until")
    op.drop_index("ix_maintenance_node", "maintenance")
    op.drop_table("maintenance")
