"""Calls each example task once and prints what came back; see tasks.py for how to run it.

The worker may be the Python one or the `worker` example in Rust.
"""

from tasks import app

CALLS = [
    ("tasks.add", [2, 2], {}),
    ("tasks.sub", [7], {"y": 9}),
    ("tasks.mul", [], {"x": 6, "y": 7}),
    ("tasks.divide", [1, 4], {}),
    ("tasks.divide", [1, 0], {}),
    ("tasks.xsum", [[1, 2, 3.5]], {}),
    ("tasks.sleep", [0.1], {}),
    ("tasks.fail", ["as it was asked to"], {}),
    ("tasks.retry", [], {"times": 2}),
    ("tasks.echo", [1, "two", None], {"three": [4, {"five": 6}]}),
    ("tasks.progress", [], {"steps": 3}),
]


def main():
    # All tasks are sent before the first result is read, so the worker may run them concurrently.
    sent = [(name, args, kwargs, app.send_task(name, args, kwargs)) for name, args, kwargs in CALLS]
    for name, args, kwargs, result in sent:
        try:
            outcome = repr(result.get(timeout=30))
        except Exception as error:  # the exception that the task has raised
            outcome = f"{type(error).__name__}: {error}"
        parameters = [repr(arg) for arg in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
        print(f"{name}({', '.join(parameters)}) {result.state} {outcome}")


if __name__ == "__main__":
    main()
