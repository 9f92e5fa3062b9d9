"""Jobs that start when others have ended"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dependencies",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("released", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_released", "dependencies", ["released"])
    op.create_table(
        "predecessors",
        sa.Column("dependency", sa.String(32), nullable=False),
        sa.Column("target", sa.String(32), nullable=False),
        sa.Column("any_end", sa.Boolean(), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.ForeignKeyConstraint(["dependency"], ["dependencies.id"], name="fk_predecessors_dependency"),
        sa.PrimaryKeyConstraint("dependency", "target", "any_end", name="pk_predecessors"),
    )
    op.add_column("jobs", sa.Column("dependency", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "dependency")
    op.drop_table("predecessors")
    op.drop_index("ix_dependencies_released", "dependencies")
    op.drop_table("dependencies")
