"""Jobs, their states, claims and finishes, workers, enqueue, stage, rescue, prune, and the views to look at them."""

from pgsched.migrate import forward_only, install

revision = "0001"
down_revision = None
branch_labels = ("pgsched",)
depends_on = None


def upgrade() -> None:
    install("0001")


downgrade = forward_only
