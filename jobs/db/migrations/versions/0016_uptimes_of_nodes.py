"""When nodes were up, so that receipts know the time of all slots"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("up_since", sa.Double(), nullable=True))
    op.create_table(
        "uptimes",
        sa.Column("node", sa.String(128), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node", "began", name="pk_uptimes"),
    )
    op.create_index("ix_uptimes_ended", "uptimes", ["ended"])


def downgrade() -> None:
    op.drop_index("ix_uptimes_ended", "uptimes")
    op.drop_table("uptimes")
    op.drop_column("nodes", "up_since")
