"""A Hugging Face Hub on loopback: the routes of huggingface_hub for models, and faults on demand."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match: an error, or a body that is not what it should be."""

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection ends after so many bytes of the body
    truncate: int | None = None  # the body ends there, and its length says so
    corrupt: bool = False
    etag: str | None = None
    delay: float = 0


@dataclass
class Repo:
    """Files of each commit, and the commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        before = self.commits.get(self.branches.get(branch, ''), {})
        files = {**before, **files}
        names = ''.join(f'{name}{hashlib.sha1(data).hexdigest()}' for name, data in sorted(files.items()))
        sha = hashlib.sha1(f'{len(self.commits)}{names}'.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


class HubServer(ThreadingHTTPServer):
    """Start with :func:`hub`.

    Attributes:
        repos: by 'user/repo'.
        requests: every request, as 'METHOD path'.
        token: what a request that writes, or reads a private repository, has to bring; None for nothing.
        lfs_from: files of at least this size go through LFS.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.token: str | None = None
        self.lfs_from = 100_000
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}'

    def fail(self, pattern: str, **fault) -> None:
        self.faults.append(Fault(pattern, **fault))

    def fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = 'HTTP/1.1'

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f'{self.command} {path}'
        self.server.requests.append(request)
        body = self.body()
        fault = self.server.fault(request)
        if fault and fault.delay:
            self.server.stopping.wait(fault.delay)
        if fault and fault.status:
            return self.send(fault.status, {'error': f'fault {fault.status}'}, fault.headers)
        for pattern, route in _ROUTES:
            found = re.fullmatch(pattern, request)
            if found:
                return route(self, body, fault, **found.groupdict())
        return self.send(404, {'error': f'no route {request}'})

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def log_message(self, *args) -> None:
        pass

    def send(self, status: int, content=None, headers=(), cut: int | None = None, length: int | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(data) if length is None else length))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            with suppress(ConnectionError):  # the client may have given up
                self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True

    def repo(self, repo: str, writes: bool = False) -> Repo | None:
        """The repository; or the error was sent."""
        found = self.server.repos.get(repo)
        allowed = self.server.token is None or self.headers.get('Authorization') == f'Bearer {self.server.token}'
        if not allowed and (writes or (found and found.private)):
            self.send(401, {'error': 'Invalid username or password.'})
        elif found is None:
            self.send(404, {'error': 'Repository not found'}, {'X-Error-Code': 'RepoNotFound'})
        else:
            return found
        return None

    def create(self, body, fault) -> None:
        asked = json.loads(body)
        owner = asked.get('organization') or 'me'
        name = f"{owner}/{asked['name']}"
        if self.server.token and self.headers.get('Authorization') != f'Bearer {self.server.token}':
            return self.send(401, {'error': 'Invalid username or password.'})
        answer = {'url': f'{self.server.url}/{name}', 'name': name}
        if name in self.server.repos:
            return self.send(409, {**answer, 'error': 'You already created this model repo'})
        repo = self.server.repos[name] = Repo(asked.get('visibility') == 'private' or bool(asked.get('private')))
        repo.commit('main', {'.gitattributes': b'*.safetensors filter=lfs\n'})
        return self.send(200, answer)

    def info(self, body, fault, repo, revision='main') -> None:
        found = self.repo(repo)
        if found:
            self.send(200, {
                'id': repo, 'modelId': repo, 'private': found.private, 'sha': found.branches.get(revision),
                'tags': [], 'downloads': 0, 'likes': 0,
                'siblings': [{'rfilename': name} for name in found.files(revision) or {}]})

    def branch(self, body, fault, repo, name) -> None:
        found = self.repo(repo, writes=True)
        if found and name in found.branches:
            self.send(409, {'error': 'Reference already exists'})
        elif found:
            found.branches[name] = found.branches['main']
            self.send(200, {})

    def tree(self, body, fault, repo, revision) -> None:
        found = self.repo(repo)
        if found:
            self.send(200, [{'type': 'file', 'path': name, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
                            for name, data in (found.files(revision) or {}).items()])

    def validate(self, body, fault) -> None:
        self.send(200, {'errors': [], 'warnings': []})

    def preupload(self, body, fault, repo, revision) -> None:
        if self.repo(repo, writes=True):
            self.send(200, {'files': [
                {'path': file['path'], 'shouldIgnore': False,
                 'uploadMode': 'lfs' if file['size'] >= self.server.lfs_from else 'regular'}
                for file in json.loads(body)['files']]})

    def batch(self, body, fault, repo) -> None:
        if self.repo(repo, writes=True):
            self.send(200, {'transfer': 'basic', 'objects': [
                {**file} if file['oid'] in self.server.large else
                {**file, 'actions': {'upload': {'href': f"{self.server.url}/large/{file['oid']}"}}}
                for file in json.loads(body)['objects']]})

    def put_large(self, body, fault, oid) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.send(400, {'error': 'not what was announced'})
        self.server.large[oid] = body
        return self.send(200, {})

    def commit(self, body, fault, repo, revision) -> None:
        found = self.repo(repo, writes=True)
        if not found:
            return
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.server.large[value['oid']]
        sha = found.commit(revision, files)
        self.send(200, {'commitUrl': f'{self.server.url}/{repo}/commit/{sha}', 'commitOid': sha})

    def resolve(self, body, fault, repo, revision, name) -> None:
        found = self.repo(repo)
        if not found:
            return
        files = found.files(revision)
        if files is None:
            return self.send(404, {'error': 'no such revision'}, {'X-Error-Code': 'RevisionNotFound'})
        headers = {'X-Repo-Commit': found.branches.get(revision, revision)}
        if name not in files:
            return self.send(404, {'error': 'no such file'}, {'X-Error-Code': 'EntryNotFound', **headers})
        data = files[name]
        is_large = len(data) >= self.server.lfs_from
        etag = hashlib.sha256(data).hexdigest() if is_large else \
            hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
        headers['ETag'] = f'"{fault.etag if fault and fault.etag else etag}"'
        start = 0
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        if asked:
            start = int(asked[1])
            headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
        data = data[start:]
        if fault and fault.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault and fault.truncate is not None:
            data = data[:fault.truncate]
        self.send(206 if asked else 200, data, headers, cut=fault.cut if fault else None)


_REPO = r'(?P<repo>[^/]+/[^/]+?)'
_ROUTES = [
    (r'POST /api/repos/create', _Handler.create),
    (rf'GET /api/models/{_REPO}(/revision/(?P<revision>.+))?', lambda self, body, fault, repo, revision:
        self.info(body, fault, repo, revision or 'main')),
    (rf'GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)', _Handler.tree),
    (rf'POST /api/models/{_REPO}/branch/(?P<name>.+)', _Handler.branch),
    (r'POST /api/validate-yaml', _Handler.validate),
    (rf'POST /api/models/{_REPO}/preupload/(?P<revision>.+)', _Handler.preupload),
    (rf'POST /{_REPO}\.git/info/lfs/objects/batch', _Handler.batch),
    (r'PUT /large/(?P<oid>\w+)', _Handler.put_large),
    (rf'POST /api/models/{_REPO}/commit/(?P<revision>.+)', _Handler.commit),
    (rf'(HEAD|GET) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)', _Handler.resolve),
]


def in_another_process(url: str, home: Path, code: str, *args: object) -> str:
    """What Python code prints in a process that has a Hub's address and an empty cache; it must not fail."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGING'))}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], capture_output=True, text=True, timeout=200,
        env={**kept, 'PYTHONPATH': str(Path(__file__).parents[1]), 'OMP_NUM_THREADS': '1', 'HF_ENDPOINT': url,
             'HF_HOME': str(home), 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_XET': '1'})
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def hub():
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
