"""The farm's tables. The database is the truth; messages may be lost and are sent again.

All times are float seconds since the epoch, by the database's clock.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

queues = Table(
    "queues",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("priority", Integer, nullable=False, default=50),
    Column("group_limit", Integer),
    Column("time_window", String(128)),
    Column("paused", Boolean, nullable=False, default=False),
    Column("shares", JSON, nullable=False, default=dict),
    # When its time window was first seen open; None while it is closed.
    Column("opened", Double),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("created", Double, nullable=False),
    # When its last row was inserted.
    Column("submitted", Double),
    # When its report was sent, if reports are configured.
    Column("reported", Double),
    # By name: the channels that its renditions are made for, as they were when it asked for them.
    Column("channels", JSON),
    # Whether some may still have to be made.
    Column("channels_open", Boolean, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    # The spec's digest is the image's identity: an image that is submitted twice is one job.
    Column("digest", String(64), nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("model", Text, nullable=False),
    Column("owner", String(128), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("priority", Integer),
    Column("least_ranks", Integer, nullable=False),
    Column("most_ranks", Integer, nullable=False),
    # [(ranks, bytes)], ascending: bytes per rank for so many ranks or more, weights included.
    Column("memory", JSON),
    # Written instead by an older version while a farm is upgraded.
    Column("memory_bytes", Double),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("fence", Integer, nullable=False, default=0),
    # Attempts that failed by the job's own fault, and those lost with their node.
    Column("attempts", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("created", Double, nullable=False),
    Column("changed", Double, nullable=False),
    Column("not_before", Double),
    Column("deadline", Double),
    Column("started", Double),
    Column("ended", Double),
    Column("progress", Double, nullable=False, default=0.0),
    Column("root", String(64)),
    # Of the finished image in the store; None means the digest, as version 0.1 named it.
    Column("folder", String(128)),
    Column("model_seconds", Double, nullable=False, default=0.0),
    # Latents that its evaluations cover over all steps; basis of the estimated slot seconds.
    Column("work", Double),
    # What it waits for before it is placed; None for a job that waits for no other one.
    Column("dependency", String(32)),
    # The tags that each of its nodes must have, see `jobs.tags`.
    Column("require_tag", String(512), nullable=False, default="", server_default=""),
    # Words of the prompt, for the search; indexed by `jobs.db.prompt_search`.
    Column("words", Text),
    Index(None, "state", "queue", "created"),
    # The queued ones that are considered for placement.
    Index("ix_jobs_oldest_queued", "state", "queue", "owner", "priority", "require_tag", "created"),
    Index("ix_jobs_longest_queued", "state", "queue", "owner", "priority", "require_tag", "work"),
    Index(None, "created"),
    # What has ended since some moment.
    Index(None, "ended"),
    # The newest of a state, page by page.
    Index(None, "state", "created"),
)

# Jobs that were deleted: what receipts need of them, and their files until those are gone.
deleted_jobs = Table(
    "deleted_jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    # The same image may be submitted, and deleted, again.
    Column("job", String(32), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", Double, nullable=False),
    # Of one that had not ended: its last change.
    Column("ended", Double, nullable=False),
    Column("model_seconds", Double, nullable=False),
    # Pixels.
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    # [[id, name]] of its batches.
    Column("batches", JSON, nullable=False),
    # A row for each node of each attempt, see `jobs.db.deleted_jobs.Spent`.
    Column("attempts", JSON, nullable=False),
    Column("deleted", Double, nullable=False, index=True),
    # The follow-up that deletes the files.
    Column("deletion", String(160), nullable=False, index=True),
    # {"folders": [...], "renditions": [[batch, channel, file]], "inputs": [digest]} in the farm's store.
    Column("files", JSON, nullable=False),
    # None until they are gone: the same image waits for that.
    Column("files_gone", Double, index=True),
)

# What the jobs of an owner may cost in a period; without a row they are not limited.
budgets = Table(
    "budgets",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("amount", Double, nullable=False),
    # Of a slot hour.
    Column("price", Double, nullable=False),
    # "month", "week" or "day", by the clock of the zone.
    Column("period", String(8), nullable=False),
    Column("zone", String(64), nullable=False),
    # The present period.
    Column("began", Double, nullable=False),
    Column("ends", Double, nullable=False),
    # Until when the slot seconds of the present period were counted.
    Column("counted", Double, nullable=False),
    Column("slot_seconds", Double, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("batch", ForeignKey("batches.id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("custom_id", String(256), nullable=False),
    Column("job", ForeignKey("jobs.id"), nullable=False, index=True),
    UniqueConstraint("batch", "custom_id"),
)

# What the jobs of one submission wait for. Its id is that of their batch.
dependencies = Table(
    "dependencies",
    metadata,
    Column("id", String(32), primary_key=True),
    # When all of its predecessors had ended; None until then.
    Column("released", Double, index=True),
)

predecessors = Table(
    "predecessors",
    metadata,
    Column("dependency", ForeignKey("dependencies.id"), primary_key=True),
    # A job or, by `kind`, all jobs of a batch.
    Column("target", String(32), primary_key=True),
    # Whether it may end in any way; else its jobs have to be done.
    Column("any_end", Boolean, primary_key=True),
    Column("kind", String(8), nullable=False),
)

# What reviewers say of a batch's images. The image is part of the key: after a re-roll the row has another
# image, of which nobody has said anything yet.
reviews = Table(
    "reviews",
    metadata,
    Column("batch", ForeignKey("batches.id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("job", ForeignKey("jobs.id"), primary_key=True, index=True),
    Column("reviewer", String(128), primary_key=True),
    # "keep", "reject", or "" for a reviewer who has only starred it or left a note.
    Column("verdict", String(16), nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Column("note", Text, nullable=False, default=""),
    Column("starred", Boolean, nullable=False, default=False),
    Column("changed", Double, nullable=False),
)

# Files for channels that the farm makes from a batch's images.
renditions = Table(
    "renditions",
    metadata,
    Column("batch", ForeignKey("batches.id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("channel", String(64), primary_key=True),
    # Whose image it is made from; another one after a re-roll.
    Column("job", String(32), nullable=False),
    Column("file", String(256), nullable=False),
    # None until the file is in the store.
    Column("made", Double),
    Column("bytes", Double),
    # The rules that it breaks: [{"rule", "passes", "wanted", "found"}].
    Column("broken", JSON),
    # Why it could not be made, or not yet.
    Column("problem", Text),
)

# What the quality gate has found in finished images; an image without a row has not been looked at yet.
image_checks = Table(
    "image_checks",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    # Of the image that was looked at.
    Column("root", String(64), nullable=False),
    # [{"check": name, "text": sentence}]
    Column("flaws", JSON, nullable=False),
    Column("flawed", Boolean, nullable=False),
    Column("checked", Double, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("fence", Integer, nullable=False),
    Column("old", String(16), nullable=False),
    Column("new", String(16), nullable=False),
    Column("reason", Text, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("address", String(256), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("vram_bytes", Double),
    Column("device", String(64), nullable=False),
    Column("draining", Boolean, nullable=False, default=False),
    # Identity of what decides bits (`render.numerics`); None for a node of version 0.1.
    Column("numerics", String(32)),
    # Identity of the agent process; None for one of version 0.2 or older.
    Column("agent", String(64)),
    # Why nothing is placed on it: [{"check": name, "text": sentence}]. None or empty for a healthy node.
    Column("problems", JSON),
    Column("lease_until", Double, nullable=False),
    # When its present uptime began; None once it has signed off, and for a node of version 0.2.
    Column("up_since", Double),
    # What people say of it.
    Column("comment", Text, nullable=False, default="", server_default=""),
    # The tags that people gave it, and those of its agent's settings, see `jobs.tags`.
    Column("tags", String(512), nullable=False, default="", server_default=""),
    Column("own_tags", String(512), nullable=False, default="", server_default=""),
    # When the maintenance ends that lasts now; set by the dispatcher, see `jobs.db.maintenance`.
    Column("maintained_until", Double),
    # Since when its agent is asked to begin anew once nothing runs here.
    Column("restart_asked", Double),
)

maintenance = Table(
    "maintenance",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("node", String(128), nullable=False, index=True),
    # Comes again and again; else it has a beginning and an end.
    Column("time_window", String(128)),
    Column("begins", Double),
    Column("ends", Double),
)

# The uptimes of nodes that are over; the present one is in the node's row.
uptimes = Table(
    "uptimes",
    metadata,
    Column("node", String(128), primary_key=True),
    Column("began", Double, primary_key=True),
    # When it signed off, or its lease was over.
    Column("ended", Double, nullable=False, index=True),
    Column("slots", Integer, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("fence", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("ended", Double, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("failed_node", String(128)),
    # Rendezvous endpoint of the ranks of all nodes, host:port; set by the first node once it is ready.
    Column("rendezvous", String(256)),
    # Random; the nodes of the attempt prove to each other that they know it. Null once the attempt has ended.
    Column("secret", String(64)),
    # Of the image in the store; None means the digest, as version 0.1 named it.
    Column("folder", String(128)),
    # The attempt before it, where a warm group of several nodes goes on with this one.
    Column("follows", String(32)),
    UniqueConstraint("job", "fence"),
)

members = Table(
    "members",
    metadata,
    Column("attempt", ForeignKey("attempts.id"), primary_key=True),
    Column("node", ForeignKey("nodes.name"), primary_key=True, index=True),
    # 0 hosts the rendezvous; ranks are numbered node after node.
    Column("place", Integer, nullable=False),
    # Slot numbers on the node: its GPUs in the driver's order.
    Column("slots", JSON, nullable=False),
    Column("ready", Boolean, nullable=False, default=False),
    Column("claimed_by", String(64)),
    Column("lease_until", Double),
    # Whether its supervisor takes more slots while it renders; None before it has said so.
    Column("elastic", Boolean),
    # What it should have of its slots, while it gives the others back; None for all.
    Column("wanted", JSON),
    # [[until, slots]], oldest first: the slots that it had before; None if they never changed.
    Column("slots_before", JSON),
    # When the group went on without this node; None for one that is (or was until the end) part of it.
    Column("left_at", Double),
    # Progress snapshot: stage, step, seconds by rank and phase. For display only, never for decisions.
    Column("live", JSON),
)

rates = Table(
    "rates",
    metadata,
    Column("model", String(512), primary_key=True),
    Column("device", String(64), primary_key=True),
    # Decayed sums over finished jobs; only their ratio has a meaning.
    Column("work", Double, nullable=False),
    Column("slot_seconds", Double, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("until", Double, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False, index=True),
    # A login name and host, or the name of a token and its address.
    Column("who", String(256), nullable=False),
    Column("action", String(32), nullable=False),
    # What it was done to: a job, batch, queue or node.
    Column("target", Text, nullable=False),
    Column("details", JSON, nullable=False, default=dict),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    # Random; shared by the boards of a farm.
    Column("value", String(64), nullable=False),
)

# Who is told when jobs have ended.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("url", Text, nullable=False),
    # "json", "slack", "teams" or "mail".
    Column("kind", String(16), nullable=False),
    # When a message is sent: "job", "batch" or "queue".
    Column("per", String(16), nullable=False),
    # Which jobs it is about; None is all of them.
    Column("queue", String(64)),
    Column("batch", String(32)),
    Column("owner", String(128)),
    # Its messages are signed with it; mail is not signed.
    Column("secret", String(64), nullable=False),
    Column("created", Double, nullable=False),
    # Until when it was told of what ended.
    Column("told", Double, nullable=False),
)

# Work that follows images: reports, webhooks and clean-up. A row is done once, however often a message asks
# for it.
follow_ups = Table(
    "follow_ups",
    metadata,
    # Says what it is, so that whoever finds it due twice adds it once.
    Column("id", String(160), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("payload", JSON, nullable=False, default=dict),
    Column("created", Double, nullable=False),
    # When it is announced (again), or tried again.
    Column("due", Double, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    # While a worker is at it; one that died is followed by another after this.
    Column("claimed_until", Double),
    Column("ended", Double),
    Column("reason", Text, nullable=False, default=""),
    Index(None, "ended", "due"),
)
