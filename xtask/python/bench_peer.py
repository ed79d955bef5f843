"""Python Celery in the benchmark `cargo xtask bench --comparison`.

    python bench_peer.py publish N        publishes N no-op tasks, prints {"n": N, "secs": S}
    celery -A bench_peer worker ...       consumes them

CELERY_BROKER_URL is the broker. There is no result backend, so the figures cover the delivery of
tasks only.
"""

import json
import sys
import time

from celery import Celery

# The broker comes from the environment.
app = Celery("bench_peer")
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True


@app.task(name="bench.noop")
def noop():
    pass


def publish(count):
    # One producer for all messages, as programs with a high rate use it.
    with app.producer_or_acquire() as producer:
        noop.apply_async(producer=producer)  # connects; not counted
        start = time.perf_counter()
        for _ in range(count - 1):
            noop.apply_async(producer=producer)
        seconds = time.perf_counter() - start
    print(json.dumps({"n": count - 1, "secs": seconds}))


if __name__ == "__main__":
    assert sys.argv[1] == "publish", __doc__
    publish(int(sys.argv[2]))
