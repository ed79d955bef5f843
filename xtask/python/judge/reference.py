"""The worker that ours is compared with: plain Celery with the suite's tasks."""
import os

from celery import Celery

app = Celery(
    "reference",
    broker=os.environ["TEST_BROKER"],
    backend=os.environ["TEST_BACKEND"],
    include=["t.integration.tasks", "celery.contrib.testing.tasks"],
)
# The suite expects extended results, and looks for the others in `inspect conf`, which shows
# what was set.
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
    """A task that is a class is known to nobody before it is registered."""
    from t.integration.tasks import ClassBasedAutoRetryTask

    sender.register_task(ClassBasedAutoRetryTask)
