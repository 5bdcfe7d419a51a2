"""What loads models by transformers does so alone in its process, as that changes the process."""

import threading

from rectiflow.models.pretrained import quiet_transformers


def test_a_second_thread_waits_until_the_first_has_loaded() -> None:
    order: list[str] = []
    has_begun = threading.Event()

    def load() -> None:
        has_begun.set()
        with quiet_transformers():
            order.append("second")

    thread = threading.Thread(target=load)
    with quiet_transformers(), quiet_transformers():  # within itself at once
        thread.start()
        has_begun.wait()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
