"""The reference worker: plain Celery with the tasks of the suite."""
import os

from celery import Celery

app = Celery(
    "reference",
    broker=os.environ["TEST_BROKER"],
    backend=os.environ["TEST_BACKEND"],
    include=["t.integration.tasks", "celery.contrib.testing.tasks"],
)
# The suite expects extended results. It looks for the other settings in the answer to
# `inspect conf`, which shows explicit settings only.
app.conf.result_extended = True
app.conf.accept_content = ["json"]
app.conf.broker_heartbeat = 0
app.conf.enable_utc = True
app.conf.timezone = "UTC"
app.conf.worker_hijack_root_logger = False
app.conf.worker_log_color = False
app.set_default()


@app.on_after_finalize.connect
def add_classes(sender, **_):
    """Registers the class-based task, which Celery does not do automatically."""
    from t.integration.tasks import ClassBasedAutoRetryTask

    sender.register_task(ClassBasedAutoRetryTask)
