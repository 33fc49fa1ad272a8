"""moto's S3 on a free port of this machine. Prints its URL, and ends when its standard input does."""

import sys
from threading import Lock, Thread

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log_request(self, *_):
        pass


def one_at_a_time(application):
    """moto looks whether an object is there, and then stores it: two writers could both be told that
    theirs is the first."""
    lock = Lock()

    def locked(environ, start_response):
        with lock:
            return application(environ, start_response)

    return locked


application = one_at_a_time(DomainDispatcherApplication(create_backend_app))
server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.port}", flush=True)
sys.stdin.read()
