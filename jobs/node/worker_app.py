"""The farm's app for workers that people add beside those of the agents, as Celery's command takes it:

    celery -A jobs.node.worker_app worker -Q renditions -P threads -c 8

It needs the farm's settings: its database, broker and store.
"""

from __future__ import annotations

from infra.settings import read_settings
from jobs.node.tasks import make_app

app = make_app(read_settings({}).broker_url.get_secret_value())
