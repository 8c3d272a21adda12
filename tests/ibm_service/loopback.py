"""IBM's REST interface on 127.0.0.1, as far as qiskit-ibm-runtime 0.51 uses it, with what can go wrong.

Every POST to /jobs that arrives makes a new job. A job is known by its id at once and listed by its tag after a random
delay below `listing_bound`. Nothing outside this machine is asked.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from ibm_service.devices import Device

TOKEN = "loopback-token"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0:1::"


@dataclass
class Fault:
    """What happens to the next `times` requests `method` `path` (its end).

    `status` is answered, or the connection is dropped where it is None; `taken`: after the request had its effect;
    `hang`: so many seconds pass before.
    """

    method: str
    path: str
    status: int | None
    taken: bool = False
    times: int = 1
    code: int = 0
    hang: float = 0.0


@dataclass
class Job:
    id: str
    tags: list[str]
    device: str
    params: dict[str, Any]
    session: str | None
    created: float
    listed: float
    starts: float
    ends: float
    cancelled: float | None = None
    failed: str | None = None
    reason_code: int | None = None
    forgotten: bool = False
    result: str | None = None
    cost: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def status(self) -> str:
        now = time.time()
        if self.cancelled is not None:
            return "Cancelled"
        if now < self.starts:
            return "Queued"
        if now < self.ends:
            return "Running"
        return "Failed" if self.failed else "Completed"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


class LoopbackService:
    """The service's state, which tests set and read, and its server.

    Args:
        listing_bound: seconds below which a job is listed.
        queue: seconds in the queue.
        runtime: seconds that a job runs.
        seed: of delays and shots.
    """

    def __init__(self, *, listing_bound: float = 0.3, queue: float = 0.0, runtime: float = 0.0, seed: int = 7) -> None:
        self.listing_bound, self.queue, self.runtime, self.seed = listing_bound, queue, runtime, seed
        self.devices = [Device("loop_manila", noisy=True, queue=3), Device("loop_ideal", queue=1)]
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.errors: list[Exception] = []
        self.hold = 0.0  # seconds before, and after, a submission makes a job
        self.fail_next: str | None = None
        self.usage_is_pending = False  # of jobs that have ended
        self.usage = {"usage_consumed_seconds": 0, "usage_limit_reached": False}
        self.lock = threading.RLock()
        self._random = random.Random(seed)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """What points the real client here: documented variables of IBM's SDK, and ours for the runtime's own URL."""
        return {
            "QISKIT_IBM_TOKEN": TOKEN,
            "QISKIT_IBM_INSTANCE": CRN,
            "LLM_QFL_IBM_RUNTIME_URL": f"{self.url}/api/v1",
            "IAM_URL": f"{self.url}/iam",
            "GLOBAL_SEARCH_URL": f"{self.url}/search",
            "GLOBAL_CATALOG_URL": f"{self.url}/catalog",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @contextmanager
    def running(self) -> Iterator[LoopbackService]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(10)

    def by_tag(self, tag: str) -> list[Job]:
        return [job for job in self.jobs.values() if tag in job.tags]

    def posts(self) -> int:
        """How often a submission arrived, taken or not."""
        return sum(line == "POST /jobs" for line in self.requests)

    # -- what the handler asks ------------------------------------------------------------------------------------

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None

    def device(self, name: str) -> Device | None:
        return next((device for device in self.devices if device.name == name), None)

    def submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        session = body.get("session_id")
        if session is not None and not self.sessions.get(session, {}).get("accepting_jobs"):
            return 400, _error(1217, "The session is not accepting jobs: it has been closed")
        with self.lock:
            now = time.time()
            starts = now + self.queue
            job = Job(
                f"job{uuid.UUID(int=self._random.getrandbits(128)).hex[:17]}", list(body.get("tags", [])),
                body["backend"], body["params"], session, now,
                now + self._random.uniform(0, self.listing_bound), starts, starts + self.runtime,
            )  # fmt: skip
            job.cost = body.get("cost")
            job.failed, self.fail_next = self.fail_next, None
            self.jobs[job.id] = job
        return 200, {"id": job.id, "backend": job.device}

    def describe(self, job: Job) -> dict[str, Any]:
        state: dict[str, Any] = {"status": job.status()}
        if job.failed or job.reason_code:
            state["reason"] = job.failed or "cancelled by the service"
            state["reason_code"] = job.reason_code
        return {
            "id": job.id, "backend": job.device, "program": {"id": "executor"}, "tags": job.tags,
            "created": _iso(job.created), "state": state, "status": job.status(), "session_id": job.session,
        }  # fmt: skip

    def listing(self, query: dict[str, list[str]]) -> dict[str, Any]:
        tags, now = set(query.get("tags", [])), time.time()
        found = [job for job in self.jobs.values() if tags <= set(job.tags) and job.listed <= now and not job.forgotten]
        found.sort(key=lambda job: job.created, reverse=query.get("sort") != ["ASC"])
        skip, limit = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["20"])[0])
        return {"jobs": [self.describe(job) for job in found[skip : skip + limit]], "count": len(found)}

    def metrics(self, job: Job) -> dict[str, Any]:
        stamps = {"created": _iso(job.created)}
        if job.status() in ("Completed", "Failed"):
            stamps |= {"running": _iso(job.starts), "finished": _iso(job.ends)}
        if self.usage_is_pending or job.status() in ("Queued", "Running"):
            return {"timestamps": stamps, "usage": {"qpu_charge_time_seconds": 0.0, "status": "pending"}}
        seconds = 2.0 if job.status() in ("Completed", "Failed") else 0.0
        return {"timestamps": stamps, "usage": {"qpu_charge_time_seconds": seconds, "status": "complete"}}

    def result(self, job: Job) -> str:
        if job.failed:
            return f"Traceback: {job.failed}"
        with job.lock:
            if job.result is None:
                device = self.device(job.device)
                assert device is not None
                job.result = device.run(job.params, self.seed)
            return job.result


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}, "errors": [{"code": code, "message": message}]}


def _handler(service: LoopbackService) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.service = service
    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that was killed is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    service: LoopbackService

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/api/v1")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.service.requests.append(f"{method} {path}")
        fault = self.service.fault(method, path)
        answer: tuple[int, Any] = (0, None)
        if fault is None or fault.taken:
            try:
                answer = self._route(method, path, parse_qs(url.query), body)
            except Exception as error:  # noqa: BLE001 - a test must see it as the client would
                self.service.errors.append(error)
                answer = (501, _error(501, repr(error)))
        time.sleep(fault.hang if fault is not None else 0.0)
        if fault is not None and fault.status is None:
            self.close_connection = True
            self.connection.close()
            return
        if fault is not None and fault.status is not None:
            answer = (fault.status, _error(fault.code, f"fault {fault.status}"))
        self._answer(*answer)

    def _answer(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was killed meanwhile: what it asked for has happened
            self.close_connection = True

    def _route(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if path.startswith(("/iam", "/search", "/catalog")):
            return self._account(path, body)
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            return 401, _error(1201, "Invalid credentials")
        parts = path.strip("/").split("/")
        if parts[0] == "jobs":
            return self._job(method, parts[1:], query, body)
        if parts[0] == "backends":
            return self._backend(parts[1:])
        if parts[0] == "sessions":
            return self._session(method, parts[1:], body)
        if path == "/instances/usage":
            return 200, self.service.usage
        return 404, _error(404, f"no such address {path}")

    def _account(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/iam"):
            if parse_qs(body.decode()).get("apikey") != [TOKEN]:
                return 400, {"errorMessage": "Provided API key could not be found.", "errorCode": "BXNIM0415E"}
            now = int(time.time())
            token = jwt.encode({"iat": now, "exp": now + 3600}, "k" * 32, algorithm="HS256")
            return 200, {"access_token": token, "refresh_token": "", "expires_in": 3600, "expiration": now + 3600}
        if path.startswith("/search"):
            item = {"crn": CRN, "name": "loopback", "service_plan_unique_id": "plan", "tags": [],
                    "doc": {"extensions": {"allocated": True}}}  # fmt: skip
            return 200, {"items": [item]}
        return 200, {"overview_ui": {"en": {"display_name": "Open"}}, "metadata": {"pricing": {"type": "free"}}}

    def _backend(self, parts: list[str]) -> tuple[int, Any]:
        if not parts:
            return 200, {"devices": [device.listing() for device in self.service.devices]}
        device = self.service.device(parts[0])
        if device is None:
            return 404, _error(1216, "Backend not found")
        if parts[1] == "configuration":
            return 200, device.configuration()
        if parts[1] == "properties":
            return 200, device.properties()
        return 200, {
            "state": device.online, "status": device.status, "length_queue": device.queue, "backend_version": "1.0.0",
        }  # fmt: skip

    def _session(self, method: str, parts: list[str], body: bytes) -> tuple[int, Any]:
        sessions = self.service.sessions
        if not parts:
            wanted = json.loads(body)
            session = {"id": f"session{len(sessions)}", "backend_name": wanted["backend"], "mode": wanted["mode"],
                       "accepting_jobs": True, "state": "open", "elapsed_time": 0,
                       "max_ttl": wanted.get("max_ttl")}  # fmt: skip
            sessions[session["id"]] = session
            return 200, session
        if parts[0] not in sessions:
            return 404, _error(1218, "Session not found")
        if method != "GET":
            sessions[parts[0]] |= {"accepting_jobs": False, "state": "closed"}
        return 200, sessions[parts[0]]

    def _job(self, method: str, parts: list[str], query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if not parts:
            if method != "POST":
                return 200, self.service.listing(query)
            time.sleep(self.service.hold)
            answer = self.service.submit(json.loads(body))
            time.sleep(self.service.hold)
            return answer
        job = self.service.jobs.get(parts[0])
        if job is None or job.forgotten:
            return 404, _error(1291, "Job not found")
        if len(parts) == 1:
            return 200, self.service.describe(job)
        if parts[1] == "results":
            return (200, self.service.result(job)) if job.status() in ("Completed", "Failed") else (204, "")
        if parts[1] == "metrics":
            return 200, self.service.metrics(job)
        if parts[1] == "cancel":
            if job.status() in ("Completed", "Failed", "Cancelled"):
                return 409, _error(1300, "Job is not cancellable")
            job.cancelled = time.time()
            return 204, ""
        return 404, _error(404, "no such address")
