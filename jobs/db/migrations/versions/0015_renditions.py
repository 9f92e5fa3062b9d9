"""Renditions that the farm makes, and the channels that batches ask for"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("channels", sa.JSON(), nullable=True))
    op.add_column("batches", sa.Column("channels_open", sa.Boolean(), nullable=True))
    op.create_index("ix_batches_channels_open", "batches", ["channels_open"])
    op.create_table(
        "renditions",
        sa.Column("batch", sa.String(32), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("file", sa.String(256), nullable=False),
        sa.Column("made", sa.Double(), nullable=True),
        sa.Column("bytes", sa.Double(), nullable=True),
        sa.Column("broken", sa.JSON(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_renditions_batch"),
        sa.PrimaryKeyConstraint("batch", "row", "channel", name="pk_renditions"),
    )


def downgrade() -> None:
    op.drop_table("renditions")
    op.drop_index("ix_batches_channels_open", "batches")
    op.drop_column("batches", "channels_open")
    op.drop_column("batches", "channels")
