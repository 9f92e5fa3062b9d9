"""`chorale simulate`, on a file and on a farm."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.database import Database
from jobs.db.nodes import register
from jobs.db.queues import set_queue
from jobs.db.rates import record_rate
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.simulation.setup import from_farm
from render.spec import Spec
from tests.support.cli import chorale, last_json

EXAMPLE = Path(__file__).parents[3] / "examples" / "scenarios" / "night.yaml"


def farm_of_four_jobs(database: Database, slots: int = 1) -> None:
    """Four jobs of 100 s on one slot each."""
    specs = [Spec(prompt="a vase", seed=seed, width=128, height=128) for seed in range(4)]
    items = [BatchItem(row=n, custom_id=str(n), spec=spec) for n, spec in enumerate(specs, start=1)]
    submit(database, items, "test", JobOptions(owner="me", ranks=1))
    with database.write() as connection:
        register(connection, "n", address="127.0.0.1", slots=slots, device="cpu", vram_bytes=None)
        work = connection.exec_driver_sql("select max(work) from jobs").scalar_one()
        record_rate(connection, "builtin", "cpu", float(work), 100.0)


@contextmanager
def kept_up(database: Database) -> Iterator[None]:
    """Renews the node's lease, as its agent would, while a command starts."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.5):
            with database.write() as connection:
                register(connection, "n", address="127.0.0.1", slots=1, device="cpu", vram_bytes=None)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_farm_as_it_is_and_with_more_nodes(database: Database) -> None:
    farm_of_four_jobs(database)
    with database.read() as connection:
        alone, helped = from_farm(connection).run(), from_farm(connection, add_nodes=1).run()
    assert 400 <= alone.makespan_s < 401
    assert 200 <= helped.makespan_s < 201
    assert alone.busy_share > 0.99


def test_a_paused_queue_is_left_out(database: Database) -> None:
    farm_of_four_jobs(database)
    with database.write() as connection:
        set_queue(connection, "default", {"paused": True})
    with database.read() as connection:
        assert from_farm(connection).run().jobs == 0


def test_the_command_reads_a_farm_and_answers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'farm.db'}"
    database = Database(url)
    upgrade(database)
    farm_of_four_jobs(database)
    words = ("simulate", "--database-url", url, "--json", "--by")
    with kept_up(database):
        answer = last_json(chorale(*words, "2100-01-01T00:00").stdout)
        late = last_json(chorale(*words, "2001-01-01T00:00").stdout)
    assert (answer["jobs"], answer["done"], answer["on_time"]) == (4, 4, True)
    assert late["on_time"] is False
    database.close()


def test_the_example_is_simulated() -> None:
    printed = chorale("simulate", str(EXAMPLE))
    assert printed.returncode == 0, printed.stderr
    assert "busy" in printed.stdout
    assert chorale("simulate", str(EXAMPLE), "--add-nodes", "1").returncode == 2
